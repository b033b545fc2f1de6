"""Coding tasks from files: HumanEval-, MBPP- and APPS-like rows, with tests read as data."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from agentflow.environments.coding import Code
from agentflow.environments.coding.problems import Problem
from agentflow.environments.coding.sets import ProgramsConfig, load_programs
from agentflow.errors import ConfigError, DataError

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """Return x twice."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n"
    "    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1], 'm'\n"
    "    assert abs(candidate(0.15) - 0.3) < 1e-5\n    assert not candidate(0)\n    assert candidate(5) is None\n"
    "    for i in range(9):\n        assert candidate(i) == 2 * i\n"
    "    assert candidate(1) == twice(1)\n    assert True\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to remove.",
    "code": "def remove(s, c): return s.replace(c, '')",
    "test_list": [
        "assert remove('hello','l') == 'heo'",
        "assert set(remove('ab', c='b')) == set('a')",
        "assert remove('', '') == ''",
    ],
}
APPS_CALL = {
    "problem_id": 1,
    "question": "Add.",
    "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], 7]}),
    "solutions": json.dumps(["def add(a, b): return a + b", "other"]),
}
APPS_STDIN = {
    "problem_id": 2,
    "question": "Add what is read.",
    "input_output": json.dumps({"inputs": ["1 2\n", ["3 4", "5"], ""], "outputs": ["3\n", ["7", "5"], ""]}),
}


def saved(folder: Path, *rows: dict[str, Any]) -> str:
    """Write rows into a file."""
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def problems(folder: Path, style: str, *rows: dict[str, Any], **other) -> list[Problem]:
    path = saved(folder, *rows)
    config = ProgramsConfig(path=path, heldout_path=path, style=style, **other)
    return [Problem.of(task) for task in load_programs(config, "train")]


def test_humaneval_tests_become_calls_and_literals(tmp_path):
    (problem,) = problems(tmp_path, "humaneval", HUMANEVAL)
    assert [(case.call, case.expected, case.tolerance) for case in problem.tests] == [
        ("twice(2)", "4", 0.0),
        ("twice([1])", "[1, 1]", 0.0),
        ("twice(0.15)", "0.3", 1e-5),
        ("twice(0)", "False", 0.0),
        ("twice(5)", "None", 0.0),
    ]
    assert problem.reference == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    assert [case.call for case in problem.examples] == ["twice(2)"]


def test_mbpp_assertions_name_the_function_and_odd_ones_are_left_out(tmp_path):
    (problem,) = problems(tmp_path, "mbpp", MBPP)
    assert problem.entry == "remove"
    assert [(case.call, case.expected) for case in problem.tests] == [
        ("remove('hello', 'l')", "'heo'"),
        ("remove('', '')", "''"),
    ]


def test_apps_rows_are_calls_or_whole_programs(tmp_path):
    call, whole = problems(tmp_path, "apps", APPS_CALL, APPS_STDIN)
    assert [(case.call, case.expected) for case in call.tests] == [("add(1, 2)", "3"), ("add(3, 4)", "7")]
    assert call.reference.startswith("def add")
    assert [(case.stdin, case.expected) for case in whole.tests] == [("1 2\n", "3\n"), ("3 4\n5", "7\n5")]
    assert whole.reference == "" and whole.entry == ""


def test_columns_can_be_named_and_parquet_is_read(tmp_path):
    row = {"spec": "Twice.", "asserts": ["assert t(1) == 2"], "meta": {"solution": "def t(x): return 2 * x"}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "set.parquet")
    path = str(tmp_path / "set.parquet")
    config = ProgramsConfig(
        path=path, heldout_path=path, style="mbpp", prompt="spec", tests="asserts", solution="meta.solution"
    )
    (task,) = load_programs(config, "heldout")
    assert task.id == "p000001" and Problem.of(task).reference == "def t(x): return 2 * x"
    assert task.prompt == "Twice.\nThe function is called t.\nt(1) is 2."


def test_rows_without_a_readable_test_are_counted(tmp_path, caplog):
    odd = {**MBPP, "task_id": 12, "test_list": ["assert remove('a') == other()", "syntax ("]}
    with caplog.at_level(logging.WARNING):
        assert len(problems(tmp_path, "mbpp", MBPP, odd)) == 1
    assert "1 of 2 rows have no test" in caplog.text
    with pytest.raises(DataError, match="no task whose tests"):
        problems(tmp_path, "mbpp", odd)
    with pytest.raises(DataError, match="no task whose tests"):
        problems(tmp_path, "apps", {**APPS_CALL, "input_output": "{"})


def test_wrong_sets_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match="repeats the id"):
        problems(tmp_path, "mbpp", MBPP, MBPP)
    with pytest.raises(DataError, match="no column 'test_list'"):
        problems(tmp_path, "mbpp", {"text": "x"})
    with pytest.raises(ConfigError, match="style"):
        Code(programs={"path": "x.jsonl"})


def test_a_share_is_held_out_by_the_prompt(tmp_path):
    rows = [{**MBPP, "task_id": i, "text": f"Number {i}."} for i in range(60)]
    config = ProgramsConfig(path=saved(tmp_path, *rows), style="mbpp", heldout_share=0.3)
    train, heldout = ({task.id for task in load_programs(config, split)} for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 60 and not train & heldout and 5 <= len(heldout) <= 30
