"""The records of a rollout, from the task to the group: frozen, JSON-serialisable, one home for each field.

    Task --rollout--> Trajectory = (Turn, Turn, ...) + Status        Group = the trajectories of one task

A turn stores what is new. With `full_0 = context_0 + sampled_0`, the tokens the policy had seen at the end of
turn k are `full_k = full_{k-1}[:prefix_length_k] + context_k + sampled_k`. A growing transcript (ReAct) has
`prefix_length_k = len(full_{k-1})`; a context that is rebuilt at each turn (AgentFlow's memory) has a smaller one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentflow.messages import Message, Reply
from agentflow.roles import Exchange

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Task:
    """One problem that an environment poses.

    Attributes:
        id: Unique within the environment and its split.
        prompt: What the policy is asked.
        answer: The gold answer, or anything else the score needs; never shown to the policy.
        metadata: Facts about the task that tables are grouped by (`hops`, `level`, ...); JSON values.
    """

    id: str
    prompt: str
    answer: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy sampled in one turn.

    Attributes:
        token_ids: The sampled tokens, the stop token included.
        logprobs: Natural log of the probability with which each token was sampled, after temperature.
        finish_reason: `stop` if the policy ended its turn, `length` if the token limit did.
        policy_version: The number of iterations whose updates made the weights that sampled them.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the environment said, what the policy sampled, what came of it.

    Attributes:
        prefix_length: Tokens kept from the end of the previous turn's full sequence; 0 at the first turn.
        context_ids: Tokens that were appended before sampling; never trained on.
        completion: The sampled tokens with their log-probs.
        messages: What the environment said before this turn.
        reply: What the sampled tokens turned out to say.
        reward: The environment's own reward for this turn.
        terms: Named reward terms of this turn, before any weighting.
        duration_s: Wall seconds the environment took to answer this turn.
    """

    prefix_length: int
    context_ids: tuple[int, ...]
    completion: Completion
    messages: tuple[Message, ...]
    reply: Reply
    reward: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """How an episode ended.

    Attributes:
        kind: `completed` by the task's own rules, `truncated` by a limit of the harness, `failed` by infrastructure.
        reason: What truncated it (`turns`, `tokens`, `seconds`, `malformed` for a reply under `on_parse_error=end`,
            `environment` for its own limit), or the cause of the failure; empty if completed.
        detail: The error's text for a failed episode.
    """

    kind: Literal["completed", "truncated", "failed"]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode of one agent.

    Attributes:
        id: Unique within a run: `<iteration>/<task>/<index in the group>`.
        task_id: The task it attempts.
        seed: The seed of this episode; it fixes the environment's and the sampler's randomness.
        turns: The turns in order; a failed trajectory keeps those that it finished.
        status: How the episode ended.
        success: Whether the task was solved; None where the score did not run.
        agent: The agent that acted.
        parent: The id of the trajectory that called this one; empty at the top.
        observation: What the environment said after the last turn.
        exchanges: What frozen models were asked during the episode and said; for people, never trained on.
    """

    id: str
    task_id: str
    seed: int
    turns: tuple[Turn, ...]
    status: Status
    success: bool | None
    agent: str = "policy"
    parent: str = ""
    observation: tuple[Message, ...] = ()
    exchanges: tuple[Exchange, ...] = ()

    @property
    def raw_return(self) -> float | None:
        """The sum of the environment's own rewards, or None for a failed episode: missing is never 0."""
        return None if self.status.kind == "failed" else sum(turn.reward for turn in self.turns)

    @property
    def num_sampled_tokens(self) -> int:
        """The number of tokens that the policy sampled."""
        return sum(len(turn.completion.token_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one task, sampled from one policy version.

    Attributes:
        task: The task that all of them attempt.
        trajectories: The attempts, in the order of their index, failed ones included.
    """

    task: Task
    trajectories: tuple[Trajectory, ...]

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        """The trajectories that have a return: all but the failed ones."""
        return tuple(t for t in self.trajectories if t.status.kind != "failed")


def full_sequences(trajectory: Trajectory) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield, for each turn, all tokens at its end and the number of them that were sampled in this turn."""
    full: tuple[int, ...] = ()
    for turn in trajectory.turns:
        sampled = turn.completion.token_ids
        full = full[: turn.prefix_length] + turn.context_ids + sampled
        yield full, len(sampled)
