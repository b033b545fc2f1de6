"""Files of the user's own are kept with the run, and one that has changed is taken up only where that is accepted."""

import hashlib
import json
from pathlib import Path

import pytest

from agentflow.cli import main
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer

_SHAPE = ScratchConfig(
    max_words=40, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_key_value_heads=1
)
_LIMITS = "run.tasks_per_iteration=2 run.group_size=2 evaluation.num_tasks=0 agent.max_turns=2 agent.max_turn_tokens=8"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose environment, loss and recipe are files of the user's own."""
    monkeypatch.chdir(tmp_path)
    tokenizer = new_tokenizer(["What does tea cost ? 3 price item"], _SHAPE.max_words)
    new_model(tokenizer, _SHAPE, seed=0).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    assert main(["envs", "new", "my_shop"]) == 0
    assert main(["algos", "new", "my_loss"]) == 0
    chosen = ["--env", "my_shop.py:MyShop", "--model", "tiny", "--algo", "my_loss.yaml", "--iterations", "1"]
    assert main(["train", *chosen, *_LIMITS.split(), "algorithm.keep.has_signal.drop=false"]) == 0
    (path,) = Path("runs").iterdir()
    return path


def kept(run: Path) -> list[tuple[str, int]]:
    """The name and the iteration of each copy, which is the text that its SHA-256 says."""
    record = json.loads((run / "sources" / "sources.json").read_text())
    for each in record:
        assert hashlib.sha256((run / "sources" / each["copy"]).read_bytes()).hexdigest() == each["sha256"]
    return [(Path(each["path"]).name, each["iteration"]) for each in record]


def test_a_changed_file_is_refused_with_its_difference_until_it_is_accepted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [("my_shop.py", 0), ("my_loss.py", 0), ("my_loss.yaml", 0)]
    assert kept(run) == first
    assert main(["train", "--resume", str(run)]) == 0
    loss = Path("my_loss.py")
    original = loss.read_text()
    loss.write_text(original.replace("Field(2.0", "Field(3.0"))
    Path("my_loss.yaml").write_text("extends: dapo\n")  # read when the run was made, and never again
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 2
    shown, said = capsys.readouterr()
    assert "my_loss.py has changed since the run read it" in said and "--accept-changes" in said
    assert "-    cap: Annotated[Number, number(gt=0)] = Field(2.0" in shown
    assert "+    cap: Annotated[Number, number(gt=0)] = Field(3.0" in shown
    assert kept(run) == first
    assert main(["train", "--resume", str(run), "--accept-changes"]) == 0
    assert kept(run) == [*first, ("my_loss.py", 1)]
    assert main(["train", "--resume", str(run)]) == 0
    assert kept(run) == [*first, ("my_loss.py", 1)]
    loss.write_text(original)
    assert main(["train", "--resume", str(run)]) == 2


def test_a_file_that_is_gone_is_named_with_its_copy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_shop.py").unlink()
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 2
    said = capsys.readouterr().err
    (copy,) = (run / "sources").glob("*_my_shop.py")
    assert "my_shop.py is gone" in said and str(copy) in said


def test_accepting_needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--env", "websearch", "--accept-changes"]) == 2
    assert "--accept-changes does nothing without --resume" in capsys.readouterr().err
