"""The journal of what frozen models cost."""

from pathlib import Path

import pytest

from agentflow.errors import DataError
from agentflow.policies.usage import Journal, Usage


def test_a_journal_sums_up_by_role(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "usage.jsonl")
    assert journal.read() == {}
    journal.add("judge", Usage(1, 10, 2, 4))
    journal.add("executor", Usage(1, 1, 1))
    journal.add("judge", Usage(1, 20, 3))
    assert journal.read() == {"judge": Usage(2, 30, 5, 4), "executor": Usage(1, 1, 1)}


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    Journal(path).add("judge", Usage(1, 10, 2))
    path.write_bytes(path.read_bytes() + b'{"role": "judge", "num_re')
    journal = Journal(path)
    assert journal.read() == {"judge": Usage(1, 10, 2)}
    journal.add("judge", Usage(1, 1, 1))
    assert journal.read() == {"judge": Usage(2, 11, 3)}


@pytest.mark.parametrize("line", ["[]", "no json", '{"role": "judge", "prompt_tokens": "x"}', '{"num_replies": 1}'])
def test_a_damaged_journal_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match="line 1 is no usage"):
        Journal(path).read()
