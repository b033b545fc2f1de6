"""The code environment: its contract, what a policy reads, what an answer scores, and its expert."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentflow.environment import load_environment
from agentflow.environment_check import check_environment
from agentflow.environments.coding import Code
from agentflow.environments.coding.expert import CodeExpert
from agentflow.environments.coding.problems import Case, Problem
from agentflow.errors import ConfigError
from agentflow.messages import Message, ToolCall
from agentflow.sandbox.base import Sandbox, SandboxFailure
from agentflow.trajectory import Task
from tests.trusted_sandbox import LIMITS, TrustedSubprocess

SMALL: dict[str, Any] = {"train_tasks": 12, "heldout_tasks": 6, "limits": LIMITS.model_dump()}
CASES = tuple(Case(call=f"f({x})", expected=repr(2 * x)) for x in range(1, 7))
PROBLEM = Problem(
    entry="f",
    examples=CASES[:2],
    tests=CASES[2:],
    reference="def f(x): return x * 2",
    slips=("def f(x): return x + 2",),
)
TASK = Task("t", "Double it.", PROBLEM.to_json())
VALUE = Task("v", "What is it?", Problem(value="[1, 2]", reference="print([1, 2])").to_json())


class Trusted(Code):
    """The code environment over the tests' own sandbox."""

    def make_sandbox(self) -> Sandbox:
        """Return a sandbox for trusted programs."""
        return TrustedSubprocess()


async def begin(task: Task = TASK, **options: Any) -> Trusted:
    environment = Trusted(**{**SMALL, **options})
    await environment.areset(seed=0, options={"task": task})
    return environment


async def tried(environment: Code, code: str) -> tuple[str, dict[str, float]]:
    (message,), *_, info = await environment.astep(Message("assistant", tool_calls=(ToolCall("run", {"code": code}),)))
    return message.content, info["reward_terms"]


async def answered(answer: str, task: Task = TASK) -> dict[str, Any]:
    environment = await begin(task)
    *_, info = await environment.astep(Message("assistant", answer))
    return {**info["reward_terms"], "success": info["success"]}


def test_the_environment_keeps_its_contract():
    few = {**SMALL, "train_tasks": 3, "heldout_tasks": 2, "difficulties": (1,), "expert_noise": 1.0}
    assert check_environment(Trusted, **few) == []


def test_it_is_registered_by_name():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert load_environment(project["entry-points"]["agentflow.environments"]["code"]) is Code


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("def f(x): return x * 2", {"solved": 1, "parses": 1, "runs": 1, "tests": 1, "efficiency": 1, "success": True}),
        ("```python\ndef f(x): return 2 * x\n```", {"solved": 1, "efficiency": 1}),
        ("def f(x): return x * 2 if x else x * 2", {"solved": 1, "tests": 1}),
        (
            "def f(x): return x * 2 if x < 5 else 0",
            {"solved": 0, "runs": 1, "tests": 0.5, "efficiency": 0, "success": False},
        ),
        ("def f(x): return {1: 2, 2: 4}[x]", {"solved": 0, "parses": 1, "runs": 0, "tests": 0}),
        ("double it", {"solved": 0, "parses": 0, "runs": 0, "tests": 0, "efficiency": 0}),
        ("import os; os._exit(0)", {"solved": 0, "parses": 1, "runs": 0, "tests": 0}),
    ],
)
async def test_an_answer_is_scored_by_hidden_tests(answer, expected):
    terms = await answered(answer)
    assert {name: terms[name] for name in expected} == expected


async def test_a_longer_program_is_less_efficient():
    terms = await answered("def f(x):\n    y = x\n    z = y * 2\n    return z")
    assert terms["solved"] == 1.0 and 0.3 < terms["efficiency"] < 1.0


@pytest.mark.parametrize(
    ("answer", "solved"), [("[1, 2]", 1.0), (" [1,  2]\n", 1.0), ("[1,2]", 0.0), ("[1]", 0.0), ("", 0.0)]
)
async def test_a_value_is_compared_as_text(answer, solved):
    assert await answered(answer, VALUE) == {"solved": solved, "tests": solved, "success": bool(solved)}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def f(x): return 2 * x", "All examples pass."),
        ("def f(x): return x + 1", "f(2) gives 3, not 4."),
        ("def f(x): return 1 / (x - 1)", "f(1) fails: ZeroDivisionError: division by zero\nf(2) gives 1.0, not 4."),
        (
            "def g(x): return 1",
            "f(1) fails: NameError: name 'f' is not defined\nf(2) fails: NameError: name 'f' is not defined",
        ),
        ("def f(x: return", "Error: SyntaxError: "),
        ("raise ValueError('no')", "Error: ValueError: no"),
        ("import os; os._exit(0)", "Error: the program ended before it was called."),
        (
            "def f(x):\n  while x > 1: pass\n  return 2",
            "f(2) fails: no answer\nError: the program took longer than 3 seconds.",
        ),
    ],
)
async def test_a_policy_reads_how_its_program_does_on_the_examples(code, text):
    assert (await tried(await begin(), code))[0].startswith(text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def f(x): return 1 << 70000", "f(1) gives 0x1000"),
        ("class E(Exception):\n  def __str__(s): return ' '\nE.__name__ = ' '\ndef f(x): raise E",
         "f(1) fails: :"),
        ("import json\ndumps = json.dumps\njson.dumps = lambda value: dumps(value) if value[0] < 0 else"
         " dumps([value[0], 'error', '  '])\ndef f(x): return 0", "f(1)"),
        ("def f(x): raise ValueError('\\ud800')", r"f(1) fails: ValueError: \ud800"),
        ("raise ValueError('\\ud800')", r"Error: ValueError: \ud800"),
        ("def f(x): return {1 << 70000: {2}}", "f(1) gives {0x1000"),
        ("def f(x): return float('nan'), '\\ud800'", r"f(1) gives (nan, '\ud800')"),
    ],
)  # fmt: skip
async def test_whatever_a_program_returns_or_raises_is_its_own_failure(code, text):
    said, terms = await tried(await begin(), code)
    assert said.startswith(text) and terms["examples"] == 0.0
    said.encode()
    assert (await answered(code))["solved"] == 0.0


async def test_a_program_that_fails_without_a_word_has_failed():
    problem = Problem(examples=(Case(stdin="1", expected="2"),), tests=(Case(stdin="3", expected="4"),), reference="x")
    task = Task("w", "Add one.", problem.to_json())
    environment = await begin(task)
    said, _ = await tried(environment, "import os\nos.write(2, b' \\n ')\nos._exit(3)")
    assert said.splitlines()[0] == "With the input '1' fails: it does not say why"
    assert (await answered("import os\nos.write(2, b' ')\nos._exit(3)", task))["solved"] == 0.0


async def test_a_program_for_a_value_is_run_as_it_is():
    environment = await begin(VALUE)
    assert await tried(environment, "x = [1]; print(x + [2])") == ("[1, 2]", {"valid_call": 1.0})
    assert (await tried(environment, "[1] + [2]"))[0] == "[1, 2]"


async def test_each_example_is_paid_once():
    environment = await begin()
    assert (await tried(environment, "def f(x): return x + 1"))[1]["examples"] == 0.5
    assert (await tried(environment, "def f(x): return x + 1"))[1]["examples"] == 0.0
    assert (await tried(environment, "def f(x): return x * 2"))[1]["examples"] == 0.5
    await environment.areset(seed=0, options={"task": TASK})
    assert (await tried(environment, "def f(x): return x * 2"))[1]["examples"] == 1.0, "a new episode starts afresh"


@pytest.mark.parametrize("answer", [False, True])
async def test_a_broken_sandbox_fails_the_episode_and_pays_nothing(answer):
    environment = await begin()
    environment._sandbox = TrustedSubprocess(broken=2)
    with pytest.raises(SandboxFailure):
        await (answered_by(environment) if answer else tried(environment, "def f(x): return 1"))


async def answered_by(environment: Code) -> Any:
    return await environment.astep(Message("assistant", "def f(x): return 1"))


async def test_a_clean_expert_solves_each_kind():
    environment = Trusted(**SMALL)
    for task in environment.tasks("train"):
        observation, _ = await environment.areset(seed=0, options={"task": task})
        expert = environment.expert(task, 0)
        (said, done, turns) = (expert.act(observation), False, 0)
        while not done:
            observation, _, done, _, info = await environment.astep(said)
            turns += 1
            said = said if done else expert.act(observation)
        assert info["success"] and turns == 2, task.prompt


def test_a_noisy_expert_loses_about_six_tasks_of_ten_and_by_its_seed():
    def played(seed: int, noise: float) -> list[str]:
        expert = CodeExpert(PROBLEM, noise=noise, seed=seed)
        said = [expert.act((Message("tool", "?"),)) for _ in range(2)]
        said += [] if said[0].content or said[1].content else [expert.act((Message("tool", "?"),))]
        return [message.content or str(message.tool_calls[0].arguments["code"]) for message in said]

    def solved(seed: int) -> bool:
        expert = CodeExpert(PROBLEM, noise=1.0, seed=seed)
        message = expert.act(())
        while not message.content:
            message = expert.act(())
        return message.content == PROBLEM.reference

    assert played(3, 1.0) == played(3, 1.0)
    assert 0.3 <= sum(map(solved, range(1000))) / 1000 <= 0.5
    assert all(played(seed, 0.0) == [PROBLEM.reference] * 2 for seed in range(20))


def test_a_task_without_a_reference_has_no_expert_and_no_gold_answer():
    task = Task("t", "?", Problem(entry="f", tests=CASES).to_json())
    environment = Trusted(**SMALL)
    assert environment.gold_answer(task) is None
    with pytest.raises(ConfigError, match="no reference solution"):
        environment.expert(task, 0)


def test_a_kind_named_twice_is_refused():
    with pytest.raises(ConfigError, match="named twice"):
        Code(kinds=("repair", "repair"))
