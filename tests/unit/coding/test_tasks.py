"""Generated coding tasks: disjoint splits, right answers, tests that tell mistakes, a small vocabulary."""

import random
import re

import pytest

from agentflow.environments.coding.problems import Problem, parsed, program_of, size
from agentflow.environments.coding.programs import Pipeline, draw, draw_input, slip
from agentflow.environments.coding.tasks import Kind, split_of, tasks
from agentflow.errors import ConfigError

KINDS: tuple[Kind, ...] = ("function", "repair", "compute")
LEVELS = (1, 2, 3, 4)


def generated(split="train", count=240, **other):
    return tasks(other.get("seed", 0), split, kinds=KINDS, difficulties=LEVELS, count=count)


def outcome(source: str, call: str) -> str:
    namespace: dict[str, object] = {}
    exec(source, namespace)
    return repr(eval(call, namespace))


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_pipeline_computes_is_what_its_source_computes(level):
    rng = random.Random(level)
    for _ in range(200):
        program = draw(rng, level)
        x = draw_input(rng, program)
        assert outcome(program.source, f"f({x!r})") == repr(program(x)), program.source
        other = slip(rng, program)
        assert isinstance(other, Pipeline) and other.level == level
        assert outcome(other.source, f"f({x!r})") == repr(other(x)), other.source


def test_references_pass_and_mistakes_fail():
    for task in generated():
        problem = Problem.of(task)
        if problem.value:
            continue
        assert len(problem.examples) == 2 and len(problem.tests) == 10
        assert not {case.call for case in problem.examples} & {case.call for case in problem.tests}
        for case in (*problem.examples, *problem.tests):
            assert outcome(problem.reference, case.call) == case.expected
        for wrong in (*problem.slips, "def f(x): return x", f"def f(x): return {problem.tests[0].expected}"):
            assert any(outcome(wrong, case.call) != case.expected for case in problem.tests), (task.prompt, wrong)


def test_a_program_to_repair_fails_an_example():
    repairs = [task for task in generated() if task.metadata["kind"] == "repair"]
    for task in repairs:
        broken = task.prompt.split("Now it is: ")[1]
        problem = Problem.of(task)
        assert broken in problem.slips
        assert any(outcome(broken, case.call) != case.expected for case in problem.examples)


def test_splits_have_no_program_and_no_prompt_in_common():
    train, heldout = generated(count=600), generated("heldout", 300)

    def programs(found):
        return {re.sub(r"^.*print\((.*)\)$", r"def f(x): return \1", Problem.of(task).reference) for task in found}

    assert not programs(train) & programs(heldout)
    assert not {task.prompt for task in train} & {task.prompt for task in heldout}
    assert {split_of(source) for source in programs(heldout)} == {"heldout"}
    assert len({task.id for task in train}) == len({task.prompt for task in train}) == 600


def test_tasks_are_fixed_by_the_seed_and_take_kinds_and_levels_in_turn():
    tasks.cache_clear()
    first = generated(count=48)
    tasks.cache_clear()
    assert generated(count=48) == first != generated(count=48, seed=1)
    assert [task.metadata["kind"] for task in first[:4]] == ["function", "repair", "compute", "function"]
    assert {(t.metadata["kind"], t.metadata["level"]) for t in first} == {(k, d) for k in KINDS for d in LEVELS}


def test_the_easiest_programs_are_short_and_the_vocabulary_is_small():
    easy = tasks(0, "train", kinds=("function",), difficulties=(1,), count=300)
    assert all(len(re.findall(r"\w+|[^\w\s]", task.answer["reference"])) <= 14 for task in easy)
    assert all("\n" not in task.answer["reference"] for task in generated())
    words = {word for task in generated(count=600) for word in re.findall(r"[a-z]+", task.prompt)}
    assert len(words) <= 80


def test_more_tasks_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match="train_tasks"):
        tasks(0, "train", kinds=("compute",), difficulties=(1,), count=100_000)


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("def f(x): return 1", "def f(x): return 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```x = 1```", "x = 1"),
        ("```py\na = 1\n```\nthen\n```py\nb = 2\n```", "b = 2"),
        ("a ``` b", "a ``` b"),
        ("", ""),
    ],
)
def test_the_last_fenced_block_is_the_program(answer, program):
    assert program_of(answer) == program


@pytest.mark.parametrize(
    "text", ["", " ", "def f(", "x = \x00", "(" * 5000, "-" * 19_000 + "1", "x" + ".a" * 9000 + "(", "1" * 20_001]
)
def test_what_is_no_program_has_no_tree(text):
    assert parsed(text) is None and size(text) == 0


def test_a_longer_program_is_larger():
    assert 0 < size("def f(x): return x + 1") < size("def f(x):\n    y = x + 1\n    return y")


@pytest.mark.parametrize("answer", [{}, {"tests": [{"call": "f(1)", "expected": "1"}], "value": "1"}, {"nonsense": 1}])
def test_a_problem_without_tests_or_value_is_refused(answer):
    with pytest.raises(ValueError):
        Problem.model_validate(answer)
