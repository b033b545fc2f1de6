"""Environments with tools: episodes from tasks, tools and a score."""

import asyncio
import json
import warnings
from dataclasses import asdict

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agentflow.environments import ToolEnvironment
from agentflow.errors import (
    BackendFailure,
    ConfigError,
    DataError,
    EnvironmentFailure,
    ScoreFailure,
    ToolError,
    ToolFailure,
)
from agentflow.messages import Message, ToolCall
from agentflow.tools.tool import ToolOutput, tool
from agentflow.trajectory import Task
from tests.pictures import PICTURE

PRICES = {"tea": 3, "salt": 1}
TEA = Task("tea", "What does tea cost?", answer="3")


class Shop(ToolEnvironment):
    """Answer questions about prices."""

    instructions = "Answer with the number only."

    def tasks(self, split):
        return [Task(item, f"What does {item} cost?", answer=str(price)) for item, price in PRICES.items()]

    @tool
    def price(self, item: str) -> int:
        """Look up a price.

        Args:
            item: The item's name.
        """
        if item not in PRICES:
            raise ToolError(f"we do not sell {item}")
        return PRICES[item]

    def score(self, task, answer):
        return {"success": float(answer.strip() == task.answer)}


def begin(environment, task=TEA):
    environment.reset(seed=1, options={"task": task})
    return environment


def calling(*calls):
    return Message("assistant", tool_calls=tuple(ToolCall(name, arguments) for name, arguments in calls))


def texts(result):
    return [message.content for message in result[0]]


class Gallery(Shop):
    """Shows what it sells."""

    @tool
    def show(self, item: str) -> ToolOutput:
        """Show an item."""
        return ToolOutput(item * self.max_observation_chars, (PICTURE, PICTURE))


def test_a_tool_may_return_images():
    gallery = begin(Gallery())
    shown, price = gallery.step(calling(("show", {"item": "tea"}), ("price", {"item": "tea"})))[0]
    assert (shown.images, shown.name) == ((PICTURE, PICTURE), "show")
    assert "characters left out" in shown.content
    assert price == Message("tool", "3", name="price")
    assert asyncio.run(gallery.tools["show"].call({"item": ""})) == ""


def test_an_episode_from_question_to_score():
    shop = Shop()
    observation, info = shop.reset(options={"task": TEA})
    assert observation == (Message("system", "Answer with the number only."), Message("user", "What does tea cost?"))
    assert info == {"task_id": "tea"}
    assert shop.step(calling(("price", {"item": "tea"}))) == (
        (Message("tool", "3", name="price"),),
        0.0,
        False,
        False,
        {"reward_terms": {"valid_call": 1.0}},
    )
    assert shop.step(Message("assistant", " 3\n")) == (
        (),
        1.0,
        True,
        False,
        {"reward_terms": {"success": 1.0}, "success": True},
    )


def test_a_wrong_answer_ends_the_episode_without_success():
    _, reward, terminated, _, info = begin(Shop()).step(Message("assistant", "4"))
    assert (reward, terminated, info["success"]) == (0.0, True, False)


def test_gymnasiums_checks_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(Shop(), skip_render_check=True)


def test_websearch_is_registered_without_being_imported():
    spec = gymnasium.spec("agentflow/WebSearch-v0")
    assert spec.entry_point == "agentflow.environments.websearch:WebSearch"


def test_gymnasium_makes_and_wraps_websearch():
    environment = gymnasium.make("agentflow/WebSearch-v0", pages=200, train_tasks=4, heldout_tasks=4)
    observation, _ = environment.reset(seed=3)
    assert observation[-1].role == "user"
    assert environment.step(Message("assistant", "nobody"))[2] is True


async def test_sync_and_async_forms_agree_inside_a_loop():
    action = calling(("price", {"item": "tea"}))
    shop = Shop()
    assert shop.reset(seed=5) == await Shop().areset(seed=5)
    shop.reset(seed=5, options={"task": TEA})
    result = shop.step(action)
    await shop.areset(seed=5, options={"task": TEA})
    assert await shop.astep(action) == result


def test_mistaken_calls_are_answered_with_what_would_work():
    result = begin(Shop()).step(
        calling(
            ("prize", {"item": "tea"}),
            ("price", {"itm": "tea"}),
            ("price", {"item": "gold"}),
            ("price", {"item": "salt"}),
        )
    )
    assert texts(result) == [
        "Error: no tool 'prize' (did you mean price?). Tools: price(item).",
        "Error: item: missing; itm: unexpected argument (did you mean item?). Tools: price(item).",
        "Error: we do not sell gold",
        "1",
    ]
    assert result[-1]["reward_terms"] == {"valid_call": 0.5}


@pytest.mark.parametrize("task", [TEA, asdict(TEA), "tea"])
def test_a_task_is_given_as_itself_its_fields_or_its_id(task):
    observation, info = Shop().reset(options={"task": task})
    assert (observation[-1].content, info["task_id"]) == (TEA.prompt, "tea")


def test_a_task_is_found_among_tasks_that_answer_every_index():
    class Drawn:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Task(str(index), "x", answer="1")

    class Endless(Shop):
        def tasks(self, split):
            return Drawn()

    assert Endless().reset(options={"task": "2"})[1]["task_id"] == "2"
    with pytest.raises(DataError, match="no task '3'"):
        Endless().reset(options={"task": "3"})


def test_without_a_task_the_seed_draws_one():
    drawn = [Shop().reset(seed=seed)[1]["task_id"] for seed in range(20)]
    assert set(drawn) == set(PRICES)
    assert drawn == [Shop().reset(seed=seed)[1]["task_id"] for seed in range(20)]


def test_wrong_reset_options_are_refused():
    for options, kind, problem in (
        ({"task": "tae"}, DataError, "no task 'tae'.*Did you mean 'tea'"),
        ({"task": {"id": "x", "question": "?"}}, DataError, "question"),
        ({"tsak": TEA}, ConfigError, "no option 'tsak'"),
    ):
        with pytest.raises(kind, match=problem):
            Shop().reset(options=options)


def test_an_empty_split_is_refused():
    class Empty(Shop):
        def tasks(self, split):
            return []

    with pytest.raises(DataError, match="Empty has no task"):
        Empty().reset(seed=1)


def test_an_episode_that_is_not_under_way_cannot_be_stepped():
    shop = Shop()
    with pytest.raises(EnvironmentFailure, match="call reset first"):
        shop.step(Message("assistant", "3"))
    begin(shop).step(Message("assistant", "3"))
    with pytest.raises(EnvironmentFailure, match="call reset first"):
        shop.step(Message("assistant", "3"))


def test_an_episode_that_failed_cannot_be_continued():
    class Broken(Shop):
        @tool
        def price(self, item: str) -> int:
            """Break."""
            raise KeyError(item)

    shop = begin(Broken())
    with pytest.raises(ToolFailure, match="tool price raised KeyError"):
        shop.step(calling(("price", {"item": "tea"})))
    with pytest.raises(EnvironmentFailure):
        shop.step(Message("assistant", "3"))


@pytest.mark.parametrize(
    ("scored", "problem"),
    [
        (None, "NoneType, not a mapping"),
        (1.0, "float, not a mapping"),
        ({"f1": 1.0}, "no 'success'"),
        ({"success": float("nan")}, "not a name with a finite number"),
        ({"success": "1"}, "not a name with a finite number"),
        ({1: 1.0, "success": 1.0}, "not a name with a finite number"),
    ],
)
def test_a_score_that_is_no_terms_is_a_failure(scored, problem):
    class Odd(Shop):
        def score(self, task, answer):
            return scored

    with pytest.raises(ScoreFailure, match=problem):
        begin(Odd()).step(Message("assistant", "3"))


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(ValueError("x"), ScoreFailure), (BackendFailure("judge"), BackendFailure), (SystemExit(), ScoreFailure)],
)
def test_a_score_that_raises_is_a_failure(raised, kind):
    class Odd(Shop):
        def score(self, task, answer):
            raise raised

    with pytest.raises(kind):
        begin(Odd()).step(Message("assistant", "3"))


def test_scores_may_be_async_numpy_and_graded():
    class Graded(Shop):
        outcome = "f1"
        success_threshold = 0.5
        reward_terms = {"short": "Whether the answer is one word."}  # noqa: RUF012

        async def score(self, task, answer):
            await asyncio.sleep(0)
            return {"f1": np.float32(0.5), "short": True}

    assert Graded.reward_terms.keys() == {"f1", "valid_call", "short", "success"}
    _, reward, _, _, info = begin(Graded()).step(Message("assistant", "3"))
    assert reward == 0.5
    assert json.loads(json.dumps(info)) == {"reward_terms": {"f1": 0.5, "short": 1.0}, "success": True}


def test_turn_terms_see_calls_and_results():
    class Shaped(Shop):
        reward_terms = {"found": "Prices that this turn found."}  # noqa: RUF012

        def turn_terms(self, results):
            return {"found": sum(result.ok and result.value for result in results)}

    calls = calling(("price", {"item": "tea"}), ("price", {"item": "gold"}), ("nothing", {}))
    info = begin(Shaped()).step(calls)[-1]
    assert info["reward_terms"] == {"valid_call": pytest.approx(2 / 3), "found": 3.0}


def test_turn_terms_that_break_are_a_failure():
    class Shaped(Shop):
        def turn_terms(self, results):
            return {"found": 1 / 0}

    with pytest.raises(ScoreFailure, match="turn_terms raised ZeroDivisionError"):
        begin(Shaped()).step(calling(("nothing", {})))


def test_the_state_of_an_episode_follows_task_and_seed_only():
    class Dice(Shop):
        def on_reset(self, task, rng):
            self.rolled = (task.id, int(rng.integers(10**9)))

    first, second = Dice(), Dice()
    first.reset(seed=4)
    second.reset(seed=4, options={"task": first.rolled[0]})
    assert first.rolled == second.rolled
    second.reset(seed=5, options={"task": first.rolled[0]})
    assert first.rolled != second.rolled


def test_long_results_lose_their_middle_and_what_no_tokenizer_takes():
    class Long(Shop):
        max_observation_chars = 11

        @tool
        def read(self) -> str:
            """Read a lot."""
            return "begin\ud83d" + "." * 999 + "end!!"

    (text,) = texts(begin(Long()).step(calling(("read", {}))))
    assert text == "begin?\n[... 999 characters left out ...]\nend!!"


class Relay(Shop):
    """Tools that can only end when both have begun."""

    def on_reset(self, task, rng):
        self.met = asyncio.Barrier(2)
        self.order = []

    @tool(parallel=True, timeout_s=5)
    async def meet(self, name: str) -> str:
        """Meet the other."""
        await self.met.wait()
        return name

    @tool(parallel=True)
    async def fail(self, after_s: float) -> str:
        """Fail."""
        await asyncio.sleep(after_s)
        raise ValueError(after_s)

    @tool
    async def walk(self, name: str) -> str:
        """Walk alone."""
        self.order.append(f"{name} leaves")
        await asyncio.sleep(0)
        self.order.append(f"{name} arrives")
        return name


async def test_parallel_tools_overlap_and_answer_in_the_order_of_the_calls():
    relay = Relay()
    await relay.areset(options={"task": TEA})
    result = await relay.astep(calling(("meet", {"name": "a"}), ("meet", {"name": "b"})))
    assert texts(result) == ["a", "b"]


async def test_other_tools_run_one_after_the_other():
    relay = Relay()
    await relay.areset(options={"task": TEA})
    await relay.astep(calling(("walk", {"name": "a"}), ("walk", {"name": "b"})))
    assert relay.order == ["a leaves", "a arrives", "b leaves", "b arrives"]


async def test_of_parallel_failures_the_first_call_counts():
    relay = Relay()
    await relay.areset(options={"task": TEA})
    with pytest.raises(ToolFailure, match=r"0\.02"):
        await relay.astep(calling(("fail", {"after_s": 0.02}), ("fail", {"after_s": 0.0})))


class Errands(Shop):
    """Calls that tell when they begin and end; `walk` waits for its neighbour."""

    def on_reset(self, task, rng):
        self.log = []

    @tool(parallel=True)
    async def walk(self, name: str, seconds: float = 0.0) -> str:
        """Walk."""
        self.log.append(f"{name}>")
        await asyncio.sleep(seconds)
        self.log.append(f"<{name}")
        return name

    @tool
    async def pay(self, name: str) -> str:
        """Pay."""
        self.log += [f"{name}>", f"<{name}"]
        return name


def test_neighbours_overlap_and_results_keep_the_order_of_the_calls():
    errands = begin(Errands())
    walks = [("walk", {"name": "a", "seconds": 0.05}), ("walk", {"name": "b"})]
    result = errands.step(calling(*walks, ("pay", {"name": "c"}), ("walk", {"name": "d"})))
    assert texts(result) == ["a", "b", "c", "d"]
    assert errands.log == ["a>", "b>", "<b", "<a", "c>", "<c", "d>", "<d"]
