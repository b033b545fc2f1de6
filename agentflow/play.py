"""The boundary of an episode: an agent is an async function over a `Play`, and knows nothing else.

    async def react(play: Play) -> None:
        thread, said = play.thread(), await play.reset()
        while not play.over:
            said = await play.act(await play.ask(thread, said))

A play owns what every agent needs and none should repeat: the environment behind its limits, who speaks for which role,
seeds, the record, and when a batch of tokens has to wait for this episode. Three things lie beyond one thread:

- `play.thread(role, grows=False)` is shown a new conversation at each turn, a memory that was written anew.
- `play.together(a(), b())` runs branches at once; their results come in the order of the calls. It is the only way to
  ask twice at once: a batch is then held back until every branch has asked, waits, or is over.
- `play.delegate(task, agent)` plays a child with an environment of its own, alone or in a branch.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

from pydantic import Field

from agentflow.attempts import Ask
from agentflow.boundary import Boundary
from agentflow.concurrency import is_cancelled
from agentflow.environment import Environment, Observation, StepResult
from agentflow.errors import ConfigError, EpisodeFailure
from agentflow.gate import Gate
from agentflow.messages import Message, Reply
from agentflow.roles import PLANNER, recorded_exchanges
from agentflow.speakers import WELL_FORMED, OutOfRoom, Speaker, SpeechConfig, Thread
from agentflow.trajectory import Episode, Status, Task, Trajectory, Turn

_log = logging.getLogger(__name__)


class AgentConfig(SpeechConfig):
    """The limits of an episode, and what happens to a reply that is not well formed."""

    max_turns: int | None = Field(None, ge=1, description="Most turns of an episode; null for the environment's own.")
    max_call_s: float = Field(
        120.0, gt=0, description="Most wall seconds of one reset or step; one that takes longer has hung, and fails."
    )
    max_episode_s: float = Field(
        600.0,
        gt=0,
        description="Wall seconds of the environment, over all turns, after which an episode ends, paid as it stands.",
    )
    on_parse_error: Literal["show", "end"] = Field(
        "show", description="A malformed reply: show the error to the policy and count the turn, or end the episode."
    )


class PlayOver(Exception):
    """The episode is over: there is nobody left to ask, and nothing to act on."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What plays have in common.

    Attributes:
        make_environment: Makes a fresh environment for one episode.
        speakers: Who speaks for each role.
        config: The limits of an episode.
    """

    make_environment: Callable[[], Environment]
    speakers: Mapping[str, Speaker]
    config: AgentConfig


class _Presence:
    """Counts the branches of an episode that are at work in this process; the gate waits while there are any."""

    def __init__(self, gate: Gate, name: str) -> None:
        self._gate = gate
        self._name = name
        self._num_acting = 1
        gate.acting(name)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let nobody wait for this branch meanwhile."""
        self.leave()
        try:
            yield
        finally:
            self.enter()

    def enter(self, count: int = 1) -> None:
        """Note that branches begin, or go on, to work."""
        self._num_acting += count
        if self._num_acting:
            self._gate.acting(self._name)

    def leave(self) -> None:
        """Note that a branch waits, or is over."""
        if not self._num_acting:
            raise RuntimeError("an episode was asked twice at once: await play.together(...) in place of a gather")
        self._num_acting -= 1
        if not self._num_acting:
            self._gate.away(self._name)


class Play:
    """One episode under way.

    Args:
        ask: What is played.
        scene: The environment's maker, the speakers and the limits.
        presence: What the gate knows of the episode, a child's parent included; None where nothing is batched.
    """

    def __init__(self, ask: Ask, scene: Scene, presence: _Presence | None = None) -> None:
        self.id = ask.id
        self.task: Task = ask.task
        self.over: Status | None = None
        """How the episode ended; None while it goes on."""
        self.success = False
        self.observation: Observation = ()
        """What the environment said last."""
        self._seed = ask.seed
        self._variant = ask.variant
        self._scene = scene
        self._presence = presence or _Presence(Gate(patience_s=0), ask.id)
        self._boundary = Boundary(scene.make_environment, max_call_s=scene.config.max_call_s, away=self._presence.away)
        self._threads: dict[tuple[str, str], Thread] = {}
        self._children: dict[tuple[int, int], Play] = {}

    @property
    def threads(self) -> tuple[Thread, ...]:
        """The conversations so far, the main one first: the one that was opened first, and is paid for what is done."""
        return tuple(self._threads.values())

    @property
    def children(self) -> tuple["Play", ...]:
        """The plays that this one delegated, in the order of turns and calls, whichever began or ended first."""
        return tuple(child for _, child in sorted(self._children.items(), key=lambda item: item[0]))

    async def reset(self) -> Observation:
        """Make the environment, pose the task, and return what it says."""
        self.observation = await self._boundary.reset(self.task, self._seed)
        material = self._variant.material
        if self._variant.kind == "hint" and not material:
            hint = partial(self._boundary.environment.hint, self.task, self._variant.level)
            material = await self._boundary.call("hint", hint)
        if material:
            self.observation = (*self.observation, Message("user", material))
        return self.observation

    def thread(self, role: str = PLANNER, *, grows: bool = True, name: str = "") -> Thread:
        """Return the conversation with a role, a new one at first.

        Args:
            role: Who speaks.
            grows: Whether a turn adds to those before it, or shows a conversation of its own.
            name: Tells conversations with one role apart; it must not depend on time or on who was first.
        """
        key = (role, name)
        if role not in self._scene.speakers:
            raise ConfigError(f"Nobody speaks for the role {role!r}.", f"Set roles.{role}.speaks.")
        if key not in self._threads:
            # The main thread goes by the episode's own name.
            suffix = f"#{role}{f'.{name}' if name else ''}" if self._threads else ""
            self._threads[key] = Thread(
                f"{self.id}{suffix}", role, grows, task=self.task, seed=self._seed, boundary=self._boundary
            )
        return self._threads[key]

    async def ask(self, thread: Thread, messages: Sequence[Message]) -> Reply:
        """Let a role speak, and return what it said.

        Args:
            thread: The conversation.
            messages: What is said to the role: since its last turn where the thread grows, else all that it is shown.

        Raises:
            PlayOver: The conversation has reached its limit of tokens, or the episode was over before.
            EpisodeFailure: Whoever speaks is broken or out of reach.
        """
        self._check_goes_on()
        speaker = self._scene.speakers[thread.role]
        try:
            if speaker.waits:
                with self._presence.away():
                    turn = await speaker.say(thread, messages)
            else:
                turn = await speaker.say(thread, messages)
        except OutOfRoom:
            self._end(Status("truncated", "tokens"))
            raise PlayOver from None
        thread.add(turn)
        return turn.reply

    async def act(self, reply: Reply) -> Observation:
        """Let the environment answer, and return what it says; a malformed reply is answered by its error.

        What the environment pays goes to the last turn of the main thread, and its limits are counted in those turns.

        Raises:
            PlayOver: The episode was over before.
            EpisodeFailure: The environment raised, hung or broke the contract.
        """
        self._check_goes_on()
        (main, *_) = self.threads
        assert main.turns, "what is done is paid to a turn: ask the main thread first"
        started = time.monotonic()
        try:
            observation, reward, terminated, truncated, info = await self._answer(reply)
        except EpisodeFailure:
            main.turns.pop()  # it was not finished
            raise
        paid = _paid(main.turns[-1], reward, info.get("reward_terms", {}), duration_s=time.monotonic() - started)
        main.turns[-1] = paid
        self.observation = observation
        if terminated:
            self.success = bool(info.get("success", reward > 0))
            self._end(Status("completed"))
        elif limit := "environment" if truncated else self._limit_reached(reply):
            self._end(Status("truncated", limit))
        return observation

    async def _answer(self, reply: Reply) -> StepResult:
        if reply.error:
            return (Message("user", reply.error),), 0.0, False, False, {}
        return await self._boundary.step(reply.message)

    async def together(self, *branches: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run branches at once; their results, in the order of the calls.

        The first one to raise ends the others, and what it raised is raised here.
        """
        self._presence.enter(len(branches) - 1)
        num_left = len(branches)

        def ended(_: object) -> None:
            nonlocal num_left
            num_left -= 1
            if num_left:  # the last one hands over to whoever waits for all of them
                self._presence.leave()

        tasks = [asyncio.ensure_future(branch) for branch in branches]
        for task in tasks:
            task.add_done_callback(ended)
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def delegate(
        self, task: Task, agent: "AgentFunction", *, call: int = 0, scene: Scene | None = None
    ) -> "Play":
        """Play a child to its end, with an environment of its own, and return it.

        Args:
            task: What it is to do.
            agent: Plays it.
            call: Its place among the delegations of this turn.
            scene: Its environment, speakers and limits; None for those of this play.

        Raises:
            EpisodeFailure: Infrastructure broke under it, and so under this play.
        """
        num_turns = len(self.threads[0].turns) if self._threads else 0
        ask = Ask(f"{self.id}/{num_turns}.{call}", task, self._seed)
        child = Play(ask, scene or self._scene, self._presence)
        self._children[num_turns, call] = child
        try:
            await child.perform(agent)
        finally:
            self._boundary.seconds += child._boundary.seconds
        return child

    async def perform(self, agent: "AgentFunction") -> None:
        """Let an agent play to the end; `over` then says how it ended.

        Raises:
            EpisodeFailure: Infrastructure broke.
        """
        try:
            await agent(self)
            self._end(Status("truncated", "agent"))
        except PlayOver:
            assert self.over is not None, "only the end of an episode is told of in this way"
        except EpisodeFailure as failure:
            self.over = Status("failed", failure.cause, str(failure))
            raise
        # Whatever else goes wrong in one episode must not end the others.
        except (Exception, SystemExit) as error:
            _log.warning("episode %s", self.id, exc_info=True)
            self.over = Status("failed", EpisodeFailure.cause, f"{type(error).__name__}: {error}")
            raise EpisodeFailure(self.over.detail) from error
        except asyncio.CancelledError as error:
            if is_cancelled():
                self.over = Status("truncated", "parent")
                raise
            self.over = Status("failed", EpisodeFailure.cause, "cancelled by its own doing")
            raise EpisodeFailure(self.over.detail) from error
        finally:
            for thread in self.threads:
                self._scene.speakers[thread.role].release(thread)
            await self._boundary.close(self.id)

    def trajectories(self, *, parent: str = "", call: int = 0) -> Iterator[Trajectory]:
        """Yield what was said, once the play is over: see `trajectory.Episode`.

        Args:
            parent: The trajectory that delegated this play; empty if nobody did.
            call: Its place among the delegations of one turn.
        """
        assert self.over is not None, "a play ends with a status"
        success = None if self.over.kind == "failed" else self.success
        ended = partial(Trajectory, task_id=self.task.id, seed=self._seed, status=self.over, success=success)
        main, *others = self.threads or (self.thread(),)
        yield ended(id=main.id, turns=tuple(main.turns), role=main.role, parent=parent, call=call)
        for thread in sorted(others, key=lambda thread: thread.id):
            yield ended(id=thread.id, turns=tuple(thread.turns), role=thread.role, parent=main.id)
        for (_, place), child in sorted(self._children.items(), key=lambda item: item[0]):
            yield from child.trajectories(parent=main.id, call=place)

    def _check_goes_on(self) -> None:
        if self.over is not None:
            raise PlayOver

    def _end(self, status: Status) -> None:
        self.over = self.over or status

    def _limit_reached(self, reply: Reply) -> str:
        """Name the limit at which an episode ends that its environment would let go on; empty if there is none."""
        config = self._scene.config
        if reply.error and config.on_parse_error == "end":
            return "malformed"
        if len(self.threads[0].turns) >= (config.max_turns or self._boundary.environment.max_turns):
            return "turns"
        return "seconds" if self._boundary.seconds > config.max_episode_s else ""


AgentFunction: TypeAlias = Callable[[Play], Awaitable[None]]
"""Plays an episode to its end, by what its `Play` offers and nothing else: `agents.base.Agent`, or a function."""


class EpisodePlayer:
    """Plays the episodes of a rollout; see `rollout.Player`.

    Args:
        agent: Plays an episode.
        scene: The environment's maker, the speakers and the limits.
    """

    def __init__(self, agent: AgentFunction, scene: Scene) -> None:
        self._agent = agent
        self._scene = scene

    def begin(self, gate: Gate) -> None:
        """Let the policies that decode in this process hold their batches back at the gate."""
        speakers = self._scene.speakers
        policies = dict.fromkeys(policy for role in sorted(speakers) if (policy := speakers[role].batching))
        for place, policy in enumerate(policies):
            policy.settle = partial(gate.settle, place)

    async def play(self, ask: Ask, gate: Gate | None = None) -> Episode:
        """Play one episode; see `rollout.Player`.

        Args:
            ask: What is played.
            gate: Where batches wait for this episode; None where nothing is batched.
        """
        play = Play(ask, self._scene, _Presence(gate, ask.id) if gate else None)
        with recorded_exchanges() as exchanges, suppress(EpisodeFailure):  # `play.over` has it
            await play.perform(self._agent)
        return Episode(tuple(play.trajectories()), play.observation, tuple(exchanges))


def _paid(turn: Turn, reward: float, terms: Mapping[str, float], *, duration_s: float) -> Turn:
    """Add what the environment pays for an action to a turn; where a turn acts more than once, it is a sum."""
    earned = {name: value for name, value in turn.terms.items() if name != WELL_FORMED}
    summed = {name: earned[name] + value if name in earned else value for name, value in terms.items()}
    return replace(
        turn,
        reward=turn.reward + reward,
        terms={**turn.terms, **summed},
        duration_s=round(turn.duration_s + duration_s, 6),
    )
