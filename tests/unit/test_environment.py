"""The environment contract and where environments are found."""

import asyncio
import itertools
import threading

import pytest

from agentflow.concurrency import run_blocking
from agentflow.environment import Environment, load_environment, load_tasks
from agentflow.errors import ConfigError, DataError
from agentflow.messages import Message
from agentflow.trajectory import Task


class Echo(Environment):
    """Say it again."""

    def __init__(self, posed=None):
        super().__init__()
        self.posed = posed or {}

    def tasks(self, split):
        return self.posed.get(split, [])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (Message("user", "echo"),), {"thread": threading.get_ident()}

    def step(self, action):
        return (Message("user", action.content),), 0.0, False, False, {}


def test_an_environment_without_tasks_or_step_cannot_be_made():
    class Half(Environment):
        def tasks(self, split):
            return []

    with pytest.raises(TypeError, match="step"):
        Half()  # type: ignore[abstract]


def test_unknown_options_are_refused():
    class Plain(Echo):
        def __init__(self, **options):
            Environment.__init__(self, **options)

    with pytest.raises(ConfigError, match="Plain has no option 'pages'"):
        Plain(pages=3)


async def test_a_synchronous_environment_is_awaited_in_a_thread():
    echo = Echo()
    _, info = await echo.areset(seed=1)
    assert info["thread"] != threading.get_ident()
    assert (await echo.astep(Message("assistant", "x")))[0] == (Message("user", "x"),)


def test_without_an_expert_the_error_says_what_to_do():
    with pytest.raises(ConfigError, match=r"Echo has no expert.*from-run"):
        Echo().expert(Task("1", "x"), 0)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4", "4"),
        (4, "4"),
        (["Paris", "paris"], "Paris"),
        ([], None),
        (None, None),
        ({"a": 1}, None),
        ([("q", "a")], None),
    ],
)
def test_the_gold_answer_is_the_tasks_answer_as_text(answer, gold):
    assert Echo().gold_answer(Task("1", "x", answer)) == gold


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ([], "no task in the split 'train'"),
        (["a question"], "holds 'a question'"),
        ((Task(str(i), "x") for i in itertools.count()), "no length"),
        ([Task("1", "x"), Task("1", "y")], "two tasks '1'"),
    ],
)
def test_tasks_nobody_could_train_on_are_refused(tasks, problem):
    with pytest.raises(DataError, match=problem):
        load_tasks(Echo({"train": tasks}), "train")


def test_tasks_keep_their_order():
    tasks = [Task("2", "x"), Task("1", "y")]
    assert load_tasks(Echo({"train": tasks}), "train") == tuple(tasks)


class Drawn:
    """Tasks made as they are asked for: any index has one."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Task(str(index), "x")


def test_tasks_that_answer_every_index_end_at_their_length():
    assert [task.id for task in load_tasks(Echo({"train": Drawn()}), "train")] == ["0", "1", "2"]


async def _identify() -> tuple[int, int]:
    return threading.get_ident(), id(asyncio.get_running_loop())


def test_blocking_runs_in_the_callers_thread_where_no_loop_runs():
    assert run_blocking(_identify())[0] == threading.get_ident()


async def test_blocking_runs_in_a_thread_of_its_own_inside_a_loop():
    assert run_blocking(_identify())[0] != threading.get_ident()


SOURCE = """
from agentflow.environment import Environment
class Mine(Environment):
    def tasks(self, split): return []
    def step(self, action): ...
other = 3
"""


def test_load_from_a_file(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(SOURCE)
    found = load_environment(f"{path}:Mine")
    assert issubclass(found, Environment)
    assert load_environment(f"{path}:Mine") is found


def test_load_says_what_is_wrong(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module_at_all")
    for spec, problem in (
        (f"{path}:Yours", "has no 'Yours'.*Known: Mine"),
        (f"{path}:other", "is not an agentflow Environment"),
        (f"{tmp_path / 'none.py'}:Mine", "There is no file"),
        (f"{broken}:Mine", "does not import: ModuleNotFoundError"),
        ("no_such_module_at_all:Mine", "Cannot import"),
        ("websaerch", "Did you mean 'websearch'"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load_environment(spec)
