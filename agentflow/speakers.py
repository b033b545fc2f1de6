"""Speakers: whoever says the turns of a role. A policy by tokens, a frozen model by text, an expert by script.

    speakers = {"planner": TokenSpeaker(policy, renderer), "verifier": TextSpeaker(OpenAIChat(config))}

A thread is one conversation with one role. One that grows is a transcript: each turn adds to what was said before.
One that does not is shown a new conversation at each turn (a memory that was written anew); it stores the tokens that
differ from those of its last turn, so a prompt that changes at its end costs what it changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pydantic import Field

from agentflow.boundary import Boundary
from agentflow.config import Config
from agentflow.environment import Environment, Expert
from agentflow.messages import Message, Reply
from agentflow.policy import BatchingPolicy, Policy, Sampling
from agentflow.renderer import Renderer
from agentflow.roles import TextModel, recorded_exchanges
from agentflow.rollout import derive_seed
from agentflow.trajectory import Completion, Task, Turn

WELL_FORMED = "well_formed"
"""The reward term that every turn has: whether what was said could be read."""


class SpeechConfig(Config):
    """How much a role may say."""

    max_turn_tokens: int = Field(64, ge=1, description="Most tokens that the policy samples in one turn.")
    max_episode_tokens: int = Field(2048, ge=2, description="Most tokens of a transcript, the last turn included.")


class OutOfRoom(Exception):
    """A conversation has become so long that nothing more can be said."""


@dataclass(slots=True, eq=False)
class Thread:
    """One conversation with one role, under way.

    Attributes:
        id: Names it within the run, and a policy's session; never the time, or an order of arrival.
        role: Who speaks.
        grows: Whether a turn adds to those before it, or shows a conversation of its own.
        task: What the episode is about.
        seed: The seed of the episode.
        boundary: The episode's environment, for speakers that ask it.
        turns: What was said so far.
        token_ids: All tokens at the end of the last turn.
        expert: Who speaks by script, once it is made.
    """

    id: str
    role: str
    grows: bool
    task: Task
    seed: int
    boundary: Boundary
    turns: list[Turn] = field(default_factory=list)
    token_ids: tuple[int, ...] = ()
    expert: Expert | None = None

    def add(self, turn: Turn) -> None:
        """Add a turn."""
        self.turns.append(turn)
        self.token_ids = (*self.token_ids[: turn.prefix_length], *turn.context_ids, *turn.completion.token_ids)


class Speaker(Protocol):
    """Whoever says the turns of a role."""

    @property
    def waits(self) -> bool:
        """Whether it waits for tokens or the world outside: nobody in this process then waits for it."""
        ...

    @property
    def batching(self) -> BatchingPolicy | None:
        """The policy that it has decode in this process, whose batches can be held back."""
        ...

    async def say(self, thread: Thread, messages: Sequence[Message]) -> Turn:
        """Return the next turn of a thread, which is not yet among its turns.

        Args:
            thread: The conversation so far.
            messages: What is said to the role: since its last turn where the thread grows, else all that it is shown.

        Raises:
            OutOfRoom: Nothing more can be said in this thread.
            EpisodeFailure: Whoever speaks is broken or out of reach.
        """
        ...

    def release(self, thread: Thread) -> None:
        """Forget what is kept for a thread that is over."""
        ...


class TokenSpeaker:
    """Speaks by sampling a policy; what it says is recorded token by token, and can be learned from.

    Args:
        policy: Samples.
        renderer: Turns messages into tokens and tokens into replies.
        config: How much it may say.
        temperature: Divides the policy's logits.
    """

    waits = True

    def __init__(self, policy: Policy, renderer: Renderer, *, config: SpeechConfig, temperature: float = 1.0) -> None:
        self._policy = policy
        self._renderer = renderer
        self._config = config
        self._temperature = temperature

    @property
    def batching(self) -> BatchingPolicy | None:
        """The policy, if it decodes in this process; see `Speaker`."""
        return self._policy if isinstance(self._policy, BatchingPolicy) else None

    async def say(self, thread: Thread, messages: Sequence[Message]) -> Turn:
        """Sample a turn; see `Speaker`."""
        prompt, num_kept = _prompt(self._renderer, thread, messages)
        sampling = Sampling(
            temperature=self._temperature,
            max_tokens=_room(self._config, prompt),
            # The members of a group share the environment's seed, and differ in what they sample.
            seed=derive_seed(thread.seed, thread.id, len(thread.turns)),
        )
        completion = await self._policy.generate(prompt, sampling, session=thread.id)
        return _turn(
            messages, self._renderer.parse(completion), prompt=prompt, num_kept=num_kept, completion=completion
        )

    def release(self, thread: Thread) -> None:
        """Let the policy forget a thread."""
        self._policy.release(thread.id)


class TextSpeaker:
    """Speaks by asking a frozen model for text: nothing that it says has tokens of ours, or is ever trained on.

    Args:
        model: The model.
    """

    waits = True
    batching = None

    def __init__(self, model: TextModel) -> None:
        self._model = model

    async def say(self, thread: Thread, messages: Sequence[Message]) -> Turn:
        """Ask the model; see `Speaker`."""
        before = thread.turns if thread.grows else ()
        conversation = [message for turn in before for message in (*turn.messages, turn.reply.message)]
        with recorded_exchanges():  # the thread is the record: what is said in it is not said to a tool as well
            text = await self._model.complete([*conversation, *messages])
        return _turn(messages, Reply(Message("assistant", text)))

    def release(self, thread: Thread) -> None:
        """Keep nothing, forget nothing."""


def own_expert(environment: Environment, task: Task, seed: int) -> Expert:
    """Return the expert that an environment ships."""
    return environment.expert(task, seed)


class ExpertSpeaker:
    """Speaks by script: an upper bound, a teacher, and a check of everything but the model.

    Args:
        renderer: Writes what the expert says in tokens, as a policy would have; None leaves it in words.
        config: How much it may say, in tokens; None for the usual limits.
        make_expert: Makes the one who speaks, for an environment, a task and a seed.
    """

    waits = False
    batching = None

    def __init__(
        self,
        renderer: Renderer | None = None,
        *,
        config: SpeechConfig | None = None,
        make_expert: Callable[[Environment, Task, int], Expert] = own_expert,
    ) -> None:
        self._renderer = renderer
        self._config = config or SpeechConfig()
        self._make_expert = make_expert

    async def say(self, thread: Thread, messages: Sequence[Message]) -> Turn:
        """Let the expert act; see `Speaker`."""
        prompt, num_kept = _prompt(self._renderer, thread, messages) if self._renderer else ((), 0)
        room = _room(self._config, prompt)
        if thread.expert is None:
            seed = derive_seed(thread.seed, thread.id)
            begin = partial(self._make_expert, thread.boundary.environment, thread.task, seed)
            thread.expert = await thread.boundary.call("expert", begin)
        expert = thread.expert
        assert expert is not None, "it has begun"
        message = await thread.boundary.call("expert", partial(expert.act, tuple(messages)))
        if self._renderer is None:
            return _turn(messages, Reply(message))
        completion = _written(self._renderer, message, room)
        return _turn(
            messages, self._renderer.parse(completion), prompt=prompt, num_kept=num_kept, completion=completion
        )

    def release(self, thread: Thread) -> None:
        """Forget the expert."""
        thread.expert = None


_UNWRITTEN = Completion((), (), "stop", policy_version=0)
"""Stands where something was said in words only."""


def _turn(
    messages: Sequence[Message],
    reply: Reply,
    *,
    prompt: Sequence[int] = (),
    num_kept: int = 0,
    completion: Completion = _UNWRITTEN,
) -> Turn:
    return Turn(
        prefix_length=num_kept,
        context_ids=tuple(prompt[num_kept:]),
        completion=completion,
        messages=tuple(messages),
        reply=reply,
        terms={WELL_FORMED: float(not reply.error)},
    )


def _written(renderer: Renderer, message: Message, room: int) -> Completion:
    tokens = tuple(renderer.reply(message))
    kept = tokens[:room]
    return Completion(kept, (0.0,) * len(kept), "stop" if kept == tokens else "length", policy_version=0)


def _prompt(renderer: Renderer, thread: Thread, messages: Sequence[Message]) -> tuple[tuple[int, ...], int]:
    """Return all tokens before the next turn, and how many of them are those of the thread's last turn."""
    before = thread.token_ids
    if thread.grows and thread.turns:
        was_cut = thread.turns[-1].completion.finish_reason == "length"
        closing = (renderer.closing(),) if was_cut else ()
        return (*before, *closing, *renderer.extend(messages)), len(before)
    prompt = tuple(renderer.start(messages))
    # Something is always new: a turn without a context would be sampled from the one before it.
    most = min(len(before), len(prompt) - 1)
    return prompt, next((i for i in range(most) if before[i] != prompt[i]), most)


def _room(config: SpeechConfig, prompt: Sequence[int]) -> int:
    """Return the most tokens of the next turn."""
    room = config.max_episode_tokens - len(prompt)
    if room < 1:
        raise OutOfRoom
    return min(room, config.max_turn_tokens)
