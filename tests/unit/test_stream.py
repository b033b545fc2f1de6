"""Groups that are collected while the learner learns: none is lost, none is too old, none is counted twice."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentflow.attempts import Ask, independent
from agentflow.errors import RunAborted
from agentflow.gate import Gate
from agentflow.messages import Message, Reply
from agentflow.rollout import Rollout, RolloutConfig
from agentflow.stream import GroupStream, StreamLimits
from agentflow.trajectory import Completion, Episode, Status, Task, Trajectory, Turn


class Player:
    """An agent whose episodes last until they are let go, and carry the version they were begun with."""

    def __init__(self) -> None:
        self.version = 0
        self.playing: set[str] = set()
        self.cancelled: list[str] = []
        self.held: set[str] = set()
        self.most_at_once = 0

    def begin(self, gate: Gate) -> None:
        """Need nothing."""

    async def play(self, ask: Ask, gate: Gate) -> Episode:
        """Play until the task is let go."""
        version = self.version
        self.playing.add(ask.id)
        self.most_at_once = max(self.most_at_once, len(self.playing))
        try:
            while ask.task.id in self.held:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.append(ask.id)
            raise
        finally:
            self.playing.discard(ask.id)
        if ask.task.id == "broken":
            raise RunAborted("the player is broken")
        if ask.task.id == "cancelled":
            raise asyncio.CancelledError  # as what is awaited may do, though nobody cancels
        turn = Turn(0, (1,), Completion((2,), (0.0,), "stop", version), (), Reply(Message("assistant", "x")))
        return Episode((Trajectory(ask.id, ask.task.id, ask.seed, (turn,), Status("completed"), success=True),))


def limits(**changed: object) -> StreamLimits:
    return StreamLimits(**{"capacity": 4, "concurrency": 64, "max_staleness": 1, **changed})  # type: ignore[arg-type]


@contextmanager
def streaming(
    player: Player, chosen: StreamLimits, *, tasks: str = "t{}", state: object = None
) -> Iterator[GroupStream]:
    stream = GroupStream(
        Rollout(player, RolloutConfig()),
        lambda number: Task(tasks.format(number), "prompt"),
        lambda task: independent(2),
        seed=0,
        limits=chosen,
    )
    if state is not None:
        stream.load_state_dict(state)  # type: ignore[arg-type]
    stream.start(version=player.version)
    try:
        yield stream
    finally:
        stream.close()


def names(collected: object) -> list[str]:
    return [group.task.id for group in collected.groups]  # type: ignore[attr-defined]


def until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_slowest_group_is_not_waited_for() -> None:
    player = Player()
    player.held = {"t1"}
    with streaming(player, limits()) as stream:
        assert names(stream.take(3)) == ["t0", "t2", "t3"]
        player.held = set()
        later = [name for _ in range(4) for name in names(stream.take(1))]
    assert sorted(later) == ["t1", "t4", "t5", "t6"]


def test_sampling_does_not_run_away_from_learning() -> None:
    player = Player()
    with streaming(player, limits(capacity=3)) as stream:
        until(lambda: stream.state_dict() == {"next": 3, "open": [0, 1, 2]} and not player.playing)
        time.sleep(0.1)
        assert stream.state_dict()["next"] == 3
        stream.take(2)
        until(lambda: stream.state_dict()["next"] == 5)


def test_episodes_share_the_slots_across_groups() -> None:
    player = Player()
    with streaming(player, limits(capacity=8, concurrency=3)) as stream:
        stream.take(8)
    assert player.most_at_once == 3


def test_what_is_too_old_is_given_up_and_counted() -> None:
    player = Player()
    player.held = {"t0"}
    with streaming(player, limits(capacity=2)) as stream:
        until(lambda: stream.state_dict()["next"] == 2 and len(player.playing) == 2)  # t1 waits, t0 is under way
        player.version = 1
        stream.updated(1)
        assert names(stream.take(1)) == ["t1"]  # one update old: within the bound
        player.version = 2
        stream.updated(2)
        until(lambda: len(player.cancelled) == 2)
        player.held = set()
        taken = stream.take(2)
    assert taken.num_stale >= 1
    assert "t0" not in names(taken)
    ages = [2 - turn.completion.policy_version for t in taken.trajectories for turn in t.turns]
    assert max(ages) <= 1


def test_what_is_too_old_can_be_kept() -> None:
    player = Player()
    player.held = {"t0"}
    with streaming(player, limits(capacity=1, keeps_stale=True)) as stream:
        until(lambda: len(player.playing) == 2)
        stream.updated(5)
        player.held = set()
        taken = stream.take(1)
    assert names(taken) == ["t0"]
    assert taken.num_stale == 0


def test_a_run_continues_with_the_groups_that_were_not_taken() -> None:
    player = Player()
    player.held = {"t0", "t3"}
    with streaming(player, limits()) as stream:
        assert sorted(names(stream.take(2))) == ["t1", "t2"]
        until(lambda: stream.state_dict()["next"] == 6)
        state = stream.state_dict()
    player.held = set()
    with streaming(player, limits(capacity=6), state=state) as stream:
        assert sorted(names(stream.take(6))) == ["t0", "t3", "t4", "t5", "t6", "t7"]


def test_groups_are_the_same_whenever_they_are_collected() -> None:
    with streaming(Player(), limits()) as stream:
        first = {t.id: t.seed for t in stream.take(3).trajectories}
    with streaming(Player(), limits(capacity=3)) as stream:
        second = {t.id: t.seed for t in stream.take(3).trajectories}
    assert first == second


def test_what_breaks_the_collection_reaches_the_taker() -> None:
    with streaming(Player(), limits(), tasks="broken") as stream, pytest.raises(RunAborted, match="player is broken"):
        stream.take(1)


def test_an_episode_that_cancels_itself_leaves_no_taker_waiting() -> None:
    with streaming(Player(), limits(), tasks="cancelled") as stream, pytest.raises(asyncio.CancelledError):
        stream.take(1)


def test_a_taker_that_waits_is_told() -> None:
    player = Player()
    player.held = {"t0"}
    seen: list[tuple[int, int]] = []

    def told(done: int, total: int) -> None:
        seen.append((done, total))
        player.held.clear()

    with streaming(player, limits(capacity=1)) as stream:
        stream.take(1, progress=told)
    assert seen == [(0, 1)]
