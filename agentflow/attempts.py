"""How a task's attempts are made: a plan is a generator that asks for attempts and is handed what became of them.

    def hinted_after_failure(draw):                        # a plan: pure, testable with .send
        episodes = yield [PLAIN] * draw.count
        if not any(e.main.success for e in episodes):
            episodes = yield [Variant("hint", level=1)] * draw.count
        return Outcome(episodes)

One driver plays the plans of a round together: attempts of all of them share one queue, and a plan that looks and asks
again never makes another one wait.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from agentflow.trajectory import Episode, Group, Task


@dataclass(frozen=True, slots=True)
class Variant:
    """How an attempt is posed, where that is not plainly.

    Attributes:
        kind: What is added to the task: `plain` for nothing, `hint`, `draft`, ...
        level: How strong it is, for a ladder of hints.
        material: The text that is shown after the task. Empty under `hint` asks the environment for its own.
    """

    kind: str = "plain"
    level: int = 0
    material: str = ""


PLAIN = Variant()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan makes of its attempts.

    Attributes:
        episodes: The group: what is compared and learned from.
        note: What statistics should know of it, as JSON values: the level of a hint, the number of drafts.
    """

    episodes: Sequence[Episode]
    note: Mapping[str, Any] = field(default_factory=dict)


Attempts: TypeAlias = Generator[Sequence[Variant], Sequence[Episode], Outcome]
"""A plan under way: it yields what is to be attempted, and receives the episodes in the same order."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt to be played.

    Attributes:
        id: The id of the episode's main trajectory.
        task: What is posed.
        seed: Fixes the environment's randomness, the same for all of a group; with the id, the sampler's.
        variant: What is added to the task.
    """

    id: str
    task: Task
    seed: int
    variant: Variant = PLAIN


def independent(count: int) -> Attempts:
    """Make so many attempts that know nothing of each other."""
    episodes = yield [PLAIN] * count
    return Outcome(episodes)


@dataclass(slots=True)
class _Phase:
    """What one plan waits for.

    Attributes:
        name: Starts the ids of its attempts.
        task: What they attempt.
        seed: The environment's seed of all of them.
        plan: The plan.
        first: Attempts of its earlier phases.
        got: The episodes of this phase so far; None where one is not over.
        outcome: What it made of them, once it is over.
    """

    name: str
    task: Task
    seed: int
    plan: Attempts
    first: int = 0
    got: list[Episode | None] = field(default_factory=list)
    outcome: Outcome | None = None


class Driver:
    """Plays plans together.

    Args:
        play: Plays one attempt and notes its retries; never raises for broken infrastructure.
        announce: Told the id of each attempt that is about to be played, before anything else can happen.
        concurrency: Most attempts that are under way at once.
    """

    def __init__(
        self, play: Callable[[Ask], Awaitable[Episode]], *, announce: Callable[[str], None], concurrency: int
    ) -> None:
        self._play = play
        self._announce = announce
        self._concurrency = concurrency
        self._queue: deque[tuple[_Phase, int, Ask]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self.num_asked = 0
        """Attempts that were asked for so far."""

    async def run(self, plans: Sequence[tuple[str, Task, int, Attempts]]) -> tuple[tuple[Group, ...], list[Outcome]]:
        """Play plans to their end.

        Args:
            plans: For each group the start of its ids, its task, the environment's seed, and the plan.

        Returns:
            A group and what the plan says of it, in the order of the plans.
        """
        phases = [_Phase(name, task, seed, plan) for name, task, seed, plan in plans]
        for phase in phases:
            self._next(phase, None)
        self._over = asyncio.get_running_loop().create_future()
        self._start()
        try:
            if self._under_way:
                await self._over
        finally:
            for left in self._under_way:
                left.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
        outcomes = [phase.outcome for phase in phases if phase.outcome is not None]
        assert len(outcomes) == len(phases), "every plan comes to its end"
        groups = tuple(Group(p.task, tuple(o.episodes)) for p, o in zip(phases, outcomes, strict=True))
        return groups, outcomes

    def _start(self) -> None:
        """Begin as many attempts as there is room for."""
        while self._queue and len(self._under_way) < self._concurrency:
            phase, place, ask = self._queue.popleft()
            # Before its task has run: whoever waits for the attempts must not see a gap between two of them.
            self._announce(ask.id)
            attempt = asyncio.get_running_loop().create_task(self._attempt(phase, place, ask))
            self._under_way.add(attempt)
            attempt.add_done_callback(self._ended)

    async def _attempt(self, phase: _Phase, place: int, ask: Ask) -> None:
        phase.got[place] = await self._play(ask)
        episodes = [episode for episode in phase.got if episode is not None]
        if len(episodes) == len(phase.got):
            self._next(phase, episodes)
        self._under_way.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        self._start()

    def _ended(self, attempt: "asyncio.Task[None]") -> None:
        """End the round with the last attempt, or with the first that raises."""
        self._under_way.discard(attempt)
        if self._over.done():
            return
        if attempt.cancelled():
            self._over.cancel()
        elif (error := attempt.exception()) is not None:
            self._over.set_exception(error)
        elif not self._under_way:
            self._over.set_result(None)

    def _next(self, phase: _Phase, got: Sequence[Episode] | None) -> None:
        """Hand a plan its episodes and queue what it asks for next; a plan that asks for nothing is asked again."""
        wanted: Sequence[Variant] = ()
        try:
            while not wanted:
                wanted = next(phase.plan) if got is None else phase.plan.send(got)
                got = ()
        except StopIteration as end:
            phase.outcome = end.value
            return
        phase.first += len(phase.got)
        phase.got = [None] * len(wanted)
        self.num_asked += len(wanted)
        for place, variant in enumerate(wanted):
            ask = Ask(f"{phase.name}/{phase.first + place}", phase.task, phase.seed, variant)
            self._queue.append((phase, place, ask))
