"""From trajectories to what the algorithm reads, and from an iteration to its metrics: pure functions."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from agentflow.errors import EpisodeFailure
from agentflow.maths.losses import LossSums
from agentflow.metrics import mean
from agentflow.rewards import ShapedTrajectory
from agentflow.trainers.algorithm import ScoredTrajectory
from agentflow.trainers.drift import Drift
from agentflow.trainers.learner import UpdateStats
from agentflow.trajectory import Group, Trajectory


def scored_trajectory(trajectory: Trajectory, shaped: ShapedTrajectory) -> ScoredTrajectory:
    """Return what the algorithm reads of a trajectory: shaped rewards, token counts, success."""
    counts = tuple(len(turn.completion.token_ids) for turn in trajectory.turns)
    return ScoredTrajectory(shaped.rewards_K, counts, trajectory.success)


def shuffled_rewards(group: Sequence[ScoredTrajectory], rng: random.Random) -> list[ScoredTrajectory]:
    """Deal the returns of a group out at random: advantages keep their distribution and lose their meaning.

    Each trajectory is paid the return that it is dealt at its last turn, and nothing before.
    """
    returns = [sum(trajectory.rewards_K) for trajectory in group]
    rng.shuffle(returns)
    return [
        ScoredTrajectory((0.0,) * (len(t.rewards_K) - 1) + (dealt,), t.sampled_tokens_K, t.success)
        for t, dealt in zip(group, returns, strict=True)
    ]


_CAUSES = (EpisodeFailure.cause, *(failure.cause for failure in EpisodeFailure.__subclasses__()))


def rollout_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """Say how an iteration's episodes went.

    Returns:
        `success/mean` over scored episodes, `turns/mean`, `tokens/sampled`, `groups/unsolved_fraction`, the share of
        groups of which no attempt was solved, and for each status that occurred `truncated/<reason>` as shares of all
        episodes; `failed/<cause>` likewise, for every cause there is.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    scored = [trajectory for trajectory in trajectories if trajectory.status.kind != "failed"]
    ends = Counter(
        f"{t.status.kind}/{t.status.reason}" for t in trajectories if t.status.kind in ("failed", "truncated")
    )
    return {
        "success/mean": mean(float(bool(trajectory.success)) for trajectory in scored),
        "turns/mean": mean(len(trajectory.turns) for trajectory in scored),
        "tokens/sampled": sum(trajectory.num_sampled_tokens for trajectory in trajectories),
        "episodes": len(trajectories),
        "groups/unsolved_fraction": mean(
            float(not any(trajectory.success for trajectory in group.scored)) for group in groups if group.scored
        ),
        **{f"failed/{cause}": 0.0 for cause in _CAUSES},
        **{name: count / len(trajectories) for name, count in sorted(ends.items())},
    }


def staleness_metrics(groups: Sequence[Group], *, version: int, num_dropped: int) -> dict[str, Any]:
    """Say how old the weights were that sampled what is learned from.

    Args:
        groups: The groups, taken before the update.
        version: The version of the weights that the update starts from.
        num_dropped: Groups that were given up because they had become too old.
    """
    oldest = [
        version - min(turn.completion.policy_version for turn in trajectory.turns)
        for group in groups
        for trajectory in group.scored
        if trajectory.turns
    ]
    return {
        "staleness/mean": mean(map(float, oldest)),
        "staleness/max": max(oldest, default=None),
        "staleness/dropped_groups": num_dropped,
    }


def group_metrics(causes: Sequence[str], *, num_kept: int) -> dict[str, Any]:
    """Say how many groups teach something, and why the others do not.

    Args:
        causes: For each group that was rolled out, why it teaches nothing; empty where it teaches something.
        num_kept: Groups that are learned from.
    """
    counts = Counter(filter(None, causes))
    return {
        "groups/num": len(causes),
        "groups/dropped": len(causes) - num_kept,
        "groups/mixed_fraction": 1 - counts.total() / len(causes),
        **{f"groups/degenerate/{cause}": count for cause, count in sorted(counts.items())},
    }


def update_metrics(stats: UpdateStats | None) -> dict[str, Any]:
    """Say what the updates did; an iteration in which no group taught anything has no update."""
    if stats is None:
        missing = dict.fromkeys([*LossSums().means(), *Drift().metrics(), "grad_norm", "learning_rate"])
        return {**missing, "updates/skipped": 0, "tokens/trained": 0, "tokens/unique": 0, "tokens/rows": 0}
    return {
        **stats.sums.means(),
        **stats.drift.metrics(),
        "grad_norm": stats.grad_norm,
        "learning_rate": stats.learning_rate,
        "updates/skipped": stats.num_skipped,
        "tokens/trained": int(stats.sums.num_tokens),
        "tokens/unique": stats.num_unique_tokens,
        "tokens/rows": stats.num_row_tokens,
    }
