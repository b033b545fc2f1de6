"""The checker finds what it is there to find, and nothing in an environment that is sound."""

import itertools
from typing import Any

import pytest

from agentflow.environment import Environment, load_environment
from agentflow.environment_check import Finding, check_environment, validate_answers
from agentflow.environments import ToolEnvironment
from agentflow.environments.scaffold import class_name, scaffold
from agentflow.errors import ConfigError, DataError, StorageError
from agentflow.messages import Message, ToolCall
from agentflow.tools.tool import tool
from agentflow.trajectory import Task


class Adder(ToolEnvironment):
    """Add numbers up."""

    def tasks(self, split):
        first = 0 if split == "train" else 100
        return [Task(f"{split}-{n}", f"What is {n} + {n}?", answer=2 * n) for n in range(first, first + 6)]

    def on_reset(self, task, rng):
        self.total = 0

    @tool
    def add(self, number: int) -> int:
        """Add a number to the total.

        Args:
            number: What to add.
        """
        self.total += number
        return self.total

    def score(self, task, answer):
        return {"success": float(answer == str(task.answer))}


def errors(env_class, **options):
    return [finding.message for finding in check_environment(env_class, **options) if finding.level == "error"]


def test_a_sound_environment_has_no_findings():
    assert check_environment(Adder) == []


async def test_the_check_runs_inside_an_event_loop_too():
    assert check_environment(Adder) == []


class SharedTotal(Adder):
    totals: dict[str, int] = {}  # noqa: RUF012

    def on_reset(self, task, rng):
        self.totals["now"] = 0

    @tool
    def add(self, number: int) -> int:
        """Add a number to the total.

        Args:
            number: What to add.
        """
        self.totals["now"] += number
        return self.totals["now"]


class Careless(Adder):
    calls = itertools.count()

    @tool
    def add(self, number: int) -> int:
        """Count all calls there ever were.

        Args:
            number: What to add.
        """
        return next(self.calls)


class Forgetful(Adder):
    def __init__(self):
        super().__init__()
        self.total = 0

    def on_reset(self, task, rng):
        pass


class Generous(Adder):
    def score(self, task, answer):
        return {"success": 1.0}


class Strict(Adder):
    def score(self, task, answer):
        return {"success": 0.0}


class Undeclared(Adder):
    def score(self, task, answer):
        return {**super().score(task, answer), "style": 1.0}


class Fragile(Adder):
    @tool
    def add(self, number: str) -> int:
        """Add a number to the total.

        Args:
            number: What to add.
        """
        return int(number)


class Repeatable(Adder):
    async def astep(self, action):
        self._task = self._task or self.tasks("train")[0]
        return await super().astep(action)


class TwoMinded(Adder):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 1, *rest


class Opaque(Adder):
    async def astep(self, action):
        *result, info = await super().astep(action)
        return *result, {**info, "seen": {1, 2}}


class Mute(Adder):
    async def areset(self, *, seed=None, options=None):
        _, info = await super().areset(seed=seed, options=options)
        return (), info


class Shifting(Adder):
    draw = itertools.count()

    def tasks(self, split):
        return [Task(f"{split}-{next(self.draw)}", f"{split}?", answer="x")]


class Unstorable(Adder):
    def tasks(self, split):
        return [Task(split, split, answer={1, 2})]


class Clinging(Adder):
    def close(self):
        raise OSError("no such handle")


class Unlimited(Adder):
    max_turns = 0


class OddlyNamed(Adder):
    @tool(name="sub tract")
    def subtract(self) -> int:
        """Subtract nothing."""
        return 0


@pytest.mark.parametrize(
    ("env_class", "problem"),
    [
        (SharedTotal, "they share state"),
        (Careless, "Played again with the same seed, an episode differs"),
        (Forgetful, "Played again by the same instance, an episode differs"),
        (Generous, "The answer '' solves 12 of 12 tasks (the first: 'train-0')"),
        (Strict, "12 of 12 gold answers do not solve their task (the first: 'train-0': reward 0"),
        (Undeclared, "The term 'style' is not declared in reward_terms"),
        (Fragile, "a tool raises ToolError with what the policy should read"),
        (Repeatable, "A step after the end of the episode was answered"),
        (TwoMinded, "differs from reset and step"),
        (Opaque, "info is not JSON"),
        (Mute, "reset says nothing"),
        (Shifting, "tasks('train') differs from call to call"),
        (Unstorable, "is not JSON"),
        (Clinging, "close raised OSError: no such handle"),
        (Unlimited, "max_turns is 0"),
        (OddlyNamed, "Tool name 'sub tract'"),
    ],
)
def test_each_defect_is_named(env_class, problem):
    assert any(problem in message for message in errors(env_class)), errors(env_class)


def test_tasks_that_are_asked_in_both_splits_are_a_warning():
    class Same(Adder):
        def tasks(self, split):
            return super().tasks("train")

    (finding,) = check_environment(Same)
    assert finding.level == "warning"
    assert finding.message.startswith("6 held-out tasks are asked in training too (the first: 'train-0')")


def test_tasks_that_differ_in_their_metadata_alone_are_not_asked_twice():
    class Rooms(Adder):
        def tasks(self, split):
            return [Task(f"{split}-{n}", "Add up.", answer=2 * n, metadata={"of": (split, n)}) for n in range(3)]

    assert check_environment(Rooms) == []


class Bare(Environment):
    """An environment without tools, whose outcome is not declared."""

    def tasks(self, split):
        return [Task(split, f"Say {split}.", answer=split)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task") or self.tasks("train")[0]
        return (Message("user", self.task.prompt),), {}

    def step(self, action):
        task, self.task = self.task, None
        assert task is not None
        success = action.content == task.answer
        return (), float(success), True, False, {"reward_terms": {"success": float(success)}, "success": success}


def test_a_term_that_is_not_declared_is_named_with_what_to_write():
    assert errors(Bare) == [
        "The outcome 'success' is not among reward_terms: none. Declare it on the class, with a sentence: "
        "reward_terms = {'success': 'Whether the task is solved.'}.",
        "The term 'success' is not declared in reward_terms: none. Add it there, with a sentence.",
    ]

    class Declared(Bare):
        reward_terms = {"success": "Whether the task is solved."}  # noqa: RUF012

    assert errors(Declared) == []


def test_what_the_policy_is_not_told_is_a_warning():
    class Terse(Adder):
        @tool
        def add(self, number: int) -> int:
            return number

    assert check_environment(Terse) == [
        Finding("warning", "Tool 'add' has no docstring: the policy is not told what it does."),
        Finding("warning", "Argument 'number' of tool 'add' is not described: add it under `Args:`."),
    ]


def test_what_cannot_be_made_is_a_finding():
    class Unscored(ToolEnvironment):
        def tasks(self, split):
            return []

    class Empty(Adder):
        def tasks(self, split):
            return []

    (message,) = errors(Unscored)
    assert "abstract class Unscored" in message and "score" in message
    assert errors(Empty) == ["Empty has no task in the split 'train'. Return at least one from `tasks(split)`."]


def test_wrong_options_are_the_callers_fault():
    with pytest.raises(ConfigError, match="Adder has no option 'level'"):
        check_environment(Adder, level=3)


class Guided(Adder):
    """No single answer is known; an expert shows that the task can be solved."""

    def gold_answer(self, task):
        return None

    def expert(self, task, seed):
        return _Expert(task)


class _Expert:
    def __init__(self, task):
        number = task.answer // 2
        call = ToolCall("add", {"number": number})
        self._plan = iter([Message("assistant", tool_calls=(call, call)), None])

    def act(self, observation):
        return next(self._plan) or Message("assistant", observation[-1].content)


def test_the_expert_solves_what_has_no_single_answer():
    assert check_environment(Guided) == []
    report = validate_answers(Guided, "heldout")
    assert (report.num_answers, report.num_played, report.num_unknown) == (0, 6, 0)


class Looking(Guided):
    """Its expert asks the environment what `on_reset` has set."""

    def expert(self, task, seed):
        assert self.total == 0
        return _Expert(task)


def test_an_expert_may_ask_for_the_state_after_reset():
    assert check_environment(Looking) == []


def test_answers_are_validated_task_by_task():
    class OneWrong(Adder):
        def tasks(self, split):
            return [*super().tasks(split), Task("odd", "What?", answer="x"), Task("open", "Why?")]

        def score(self, task, answer):
            return {"success": float(task.id != "odd")}

    report = validate_answers(OneWrong, "train")
    assert (report.num_answers, report.num_played, report.num_unknown, list(report.failing)) == (7, 0, 1, ["odd"])
    assert report.failing["odd"].startswith("reward 0")
    assert validate_answers(OneWrong, "train", limit=2).num_answers == 2


def test_validating_an_empty_split_is_refused():
    class Empty(Adder):
        def tasks(self, split):
            return []

    with pytest.raises(DataError):
        validate_answers(Empty, "train")


def test_the_scaffold_is_ready_to_train(tmp_path):
    environment, test = scaffold("my_shop", tmp_path / "new")
    assert (environment.name, test.name) == ("my_shop.py", "test_my_shop.py")
    assert len(environment.read_text().splitlines()) <= 30
    assert check_environment(load_environment(f"{environment}:{class_name('my_shop')}")) == []
    namespace: dict[str, Any] = {"__file__": str(test)}
    exec(compile(test.read_text(), test, "exec"), namespace)
    namespace["test_is_ready_to_train"]()


def test_the_scaffold_never_overwrites(tmp_path):
    (tmp_path / "test_shop.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"test_shop\.py exists"):
        scaffold("shop", tmp_path)
    assert not (tmp_path / "shop.py").exists()
    assert (tmp_path / "test_shop.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "My", "9lives", "a-b", "class", "json", "../up"])
def test_the_scaffold_refuses_names_that_cannot_be_imported(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot name an environment"):
        scaffold(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_scaffold_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        scaffold("shop", tmp_path / "file" / "below")
