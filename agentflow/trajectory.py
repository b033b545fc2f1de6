"""The records of a rollout, from the task to the group: frozen, JSON-serialisable, one home for each field.

    Task --rollout--> Episode = (Trajectory, Trajectory, ...)         Group = the episodes of one task
                      Trajectory = (Turn, Turn, ...) + Status         one thread of one role

A turn stores what is new. With `full_0 = context_0 + sampled_0`, the tokens the policy had seen at the end of
turn k are `full_k = full_{k-1}[:prefix_length_k] + context_k + sampled_k`. A growing transcript (ReAct) has
`prefix_length_k = len(full_{k-1})`; a context that is rebuilt at each turn (AgentFlow's memory) has a smaller one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentflow.messages import Message, Reply
from agentflow.roles import PLANNER, Exchange

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
            `environment` for its own limit, `agent` for an agent that ended it unanswered, `parent` for the end of
            whoever delegated it), or the cause of the failure; empty if completed.
        detail: The error's text for a failed episode.
    """

    kind: Literal["completed", "truncated", "failed"]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One thread of one role in an episode.

    Attributes:
        id: Unique within a run. The main one is `<iteration>/<task>/<index in the group>`; one of another role adds
            `#<role>`, one of a delegation `/<turn>.<call>`.
        task_id: The task that it attempts: the episode's, or what was delegated.
        seed: The seed of the episode; it fixes the environment's and the sampler's randomness.
        turns: The turns in order; a failed trajectory keeps those that it finished.
        status: How the play ended that it belongs to.
        success: Whether the task was solved; None where the score did not run.
        role: Who spoke.
        parent: The id of the trajectory that called this one; empty for the main one.
        call: Its place among the delegations of one turn of its parent.
    """

    id: str
    task_id: str
    seed: int
    turns: tuple[Turn, ...]
    status: Status
    success: bool | None
    role: str = PLANNER
    parent: str = ""
    call: int = 0

    @property
    def raw_return(self) -> float | None:
        """The sum of the environment's own rewards, or None where it failed: missing is never 0."""
        return None if self.status.kind == "failed" else sum(turn.reward for turn in self.turns)

    @property
    def num_sampled_tokens(self) -> int:
        """The number of tokens that the policy sampled."""
        return sum(len(turn.completion.token_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Episode:
    """One play: everything that was said in it, by whom, and what came of it.

    Attributes:
        trajectories: The main one, whose status and success are the episode's; then those of other roles, by name;
            then those of the plays that were delegated, in the order of turns and calls.
        observation: What the environment said last.
        exchanges: What frozen models were asked by tools and scores, and said; for people, never trained on.
    """

    trajectories: tuple[Trajectory, ...]
    observation: tuple[Message, ...] = ()
    exchanges: tuple[Exchange, ...] = ()

    @property
    def main(self) -> Trajectory:
        """The trajectory that is paid for what is done in the environment."""
        return self.trajectories[0]

    def by_role(self, role: str) -> tuple[Trajectory, ...]:
        """Return the trajectories of a role."""
        return tuple(trajectory for trajectory in self.trajectories if trajectory.role == role)


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task, sampled from one policy version.

    Attributes:
        task: The task that all of them attempt.
        episodes: The attempts, in the order of their index, failed ones included.
    """

    task: Task
    episodes: tuple[Episode, ...]

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The main trajectory of each episode."""
        return tuple(episode.main for episode in self.episodes)

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        """The main trajectories that have a return: all but the failed ones."""
        return tuple(t for t in self.trajectories if t.status.kind != "failed")


def full_sequences(trajectory: Trajectory) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield, for each turn, all tokens at its end and the number of them that were sampled in this turn."""
    full: tuple[int, ...] = ()
    for turn in trajectory.turns:
        sampled = turn.completion.token_ids
        full = full[: turn.prefix_length] + turn.context_ids + sampled
        yield full, len(sampled)
