"""The policy contract, and the scripted policy that plays it without a model."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from agentflow.trajectory import Completion


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one turn is sampled.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token.
        max_tokens: The most tokens of this turn, the stop token included.
        seed: Fixes the draw of this turn, whatever else is in the batch.
    """

    temperature: float = 1.0
    max_tokens: int = 256
    seed: int = 0


class Policy(Protocol):
    """Whatever turns a prompt into sampled tokens."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Completion:
        """Sample one turn.

        Args:
            prompt_ids: [L] every token before the turn.
            sampling: Temperature, token limit and seed.
            session: Names the trajectory, so that a policy may keep its key-value cache between turns.

        Raises:
            PolicyFailure: The policy or the server behind it did not answer.
        """
        ...

    def release(self, session: str) -> None:
        """Forget what is kept for a session; unknown sessions are ignored."""
        ...


class TrainablePolicy(Policy, Protocol):
    """A policy whose weights are a learner's.

    Attributes:
        version: The number of iterations whose updates made the weights that it samples from.
    """

    version: int

    @property
    def max_length(self) -> int:
        """The most tokens of one episode that the model has positions for."""
        ...

    def serving(self, folder: Path) -> AbstractContextManager[None]:
        """Be ready to sample within; logs go into a folder of the given one."""
        ...

    def updating(self) -> AbstractContextManager[None]:
        """Let the learner change the weights within; after it, whatever is sampled is sampled from the new ones."""
        ...

    def forget(self) -> None:
        """Free what is remembered of all sessions."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return what is to be logged of it in each iteration."""
        ...


@runtime_checkable
class BatchingPolicy(Policy, Protocol):
    """A policy that decodes in batches of its own making.

    Attributes:
        settle: Awaited before each decoding step, to hold it back for episodes that are about to join.
    """

    settle: Callable[[], Awaitable[None]]


class ScriptedPolicy:
    """A policy that answers by a function of the prompt: for tests, experts and dry runs.

    Args:
        script: Maps the prompt's token ids to the reply's token ids, the stop token included.
    """

    def __init__(self, script: Callable[[Sequence[int]], Sequence[int]]) -> None:
        self._script = script

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Completion:
        """Return the script's tokens with probability one, cut at the token limit."""
        reply = tuple(self._script(prompt_ids))
        kept = reply[: sampling.max_tokens]
        return Completion(kept, (0.0,) * len(kept), "stop" if len(kept) == len(reply) else "length", policy_version=0)

    def release(self, session: str) -> None:
        """Keep nothing, forget nothing."""
