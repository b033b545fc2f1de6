"""Plans: pure generators that look before they ask again, and the driver that plays them together."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from agentflow.attempts import PLAIN, Ask, Attempts, Driver, Outcome, Variant, independent
from agentflow.errors import RunAborted
from agentflow.gate import Gate
from agentflow.trajectory import Episode, Status, Task, Trajectory


def episode(ask: Ask, *, success: bool) -> Episode:
    return Episode((Trajectory(ask.id, ask.task.id, ask.seed, (), Status("completed"), success=success),))


def ladder(count: int) -> Attempts:
    """Ask again with stronger hints until something succeeds."""
    got: Sequence[Episode] = ()
    for level in range(4):
        got = yield [Variant("hint", level) if level else PLAIN] * count
        if any(each.main.success for each in got):
            return Outcome(got, {"level": level})
    return Outcome(got, {"level": 4})


def test_a_plan_is_driven_by_send_alone() -> None:
    plan = ladder(2)
    assert next(plan) == [PLAIN, PLAIN]
    lost = [episode(Ask(str(i), Task("t", ""), 0), success=False) for i in range(2)]
    assert plan.send(lost) == [Variant("hint", 1)] * 2
    won = [lost[0], episode(Ask("1", Task("t", ""), 0), success=True)]
    with pytest.raises(StopIteration) as end:
        plan.send(won)
    assert end.value.value == Outcome(won, {"level": 1})


class World:
    """Solves a task from the level of hint on that its id names; takes its time."""

    def __init__(self, seed: int) -> None:
        self.gate = Gate(1.0)
        self.order: list[str] = []
        self.most = 0
        self._now = 0
        self._rng = random.Random(seed)

    async def play(self, ask: Ask) -> Episode:
        """Play an attempt."""
        self._now += 1
        self.most = max(self.most, self._now)
        self.order.append(ask.id)
        await asyncio.sleep(self._rng.random() / 500)
        self._now -= 1
        self.gate.away(ask.id)
        return episode(ask, success=ask.variant.level >= int(ask.task.id))


@pytest.mark.parametrize("seed", range(3))
def test_plans_that_ask_again_share_the_room_and_keep_their_order(seed: int) -> None:
    world = World(seed)

    async def run() -> tuple[tuple[int, ...], list[Outcome], int]:
        driver = Driver(world.play, announce=world.gate.acting, concurrency=3)
        plans = [(f"p{level}", Task(str(level), ""), 7, ladder(4)) for level in (2, 0, 3)]
        groups, outcomes = await driver.run([*plans, ("plain", Task("0", ""), 1, independent(5))])
        return tuple(len(group.episodes) for group in groups), outcomes, driver.num_asked

    sizes, outcomes, num_asked = asyncio.run(run())
    assert sizes == (4, 4, 4, 5)
    assert [outcome.note for outcome in outcomes] == [{"level": 2}, {"level": 0}, {"level": 3}, {}]
    assert num_asked == 12 + 4 + 16 + 5 == len(world.order) == len(set(world.order))
    assert world.most == 3
    # Whatever comes first, each attempt is called by its place in its plan.
    assert [each.main.id for each in outcomes[0].episodes] == [f"p2/{k}" for k in range(8, 12)]


def test_a_plan_that_asks_for_nothing_has_an_empty_group() -> None:
    async def run() -> tuple[int, ...]:
        world = World(0)
        driver = Driver(world.play, announce=world.gate.acting, concurrency=2)
        groups, _ = await driver.run([("none", Task("0", ""), 0, independent(0))])
        return tuple(len(group.episodes) for group in groups)

    assert asyncio.run(run()) == (0,)


def test_what_breaks_one_attempt_ends_the_round_and_leaves_nothing_behind() -> None:
    world = World(0)

    async def broken(ask: Ask) -> Episode:
        if ask.id.endswith("/1"):
            raise RunAborted("broken")
        return await world.play(ask)

    async def run() -> int:
        driver = Driver(broken, announce=world.gate.acting, concurrency=4)
        with pytest.raises(RunAborted, match="broken"):
            await driver.run([("p", Task("0", ""), 0, independent(8))])
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(run()) == 0
