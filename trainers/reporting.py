"""From an iteration to its metrics: pure functions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow.errors import EpisodeFailure
from agentflow.metrics import mean
from agentflow.rewards import reward_metrics
from agentflow.trainers.drift import Drift
from agentflow.trainers.engines.base import Update
from agentflow.trainers.slots.records import Seen
from agentflow.trajectory import Group


def iteration_metrics(seen: Seen, update: Update, *, version: int, lags: bool) -> dict[str, Any]:
    """Return everything that is logged of an iteration's rollouts and updates.

    Args:
        seen: What was collected.
        update: What was learned from it.
        version: The version of the weights that the updates started from.
        lags: Whether groups were collected while the learner learned: they took the updates' time as well.
    """
    found = seen.found
    groups = [each.group for each in found.judged]
    metrics = {
        **rollout_metrics(groups),
        **reward_metrics([member.shaped for member in found.earned]),
        **group_metrics([each.cause for each in found.judged], num_kept=len(found.kept)),
        **update_metrics(update),
        **staleness_metrics(groups, version=version, num_dropped=found.num_stale),
        "rollout/retried": found.num_retried,
        "rollout/unpunctual": found.num_unpunctual,
        "time/rollout_s": found.duration_s,
        "time/update_s": update.duration_s,
    }
    sampling_s = found.duration_s + (update.duration_s if lags else 0.0)
    return metrics | {"time/sampled_tokens_per_s": metrics["tokens/sampled"] / sampling_s}


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


def update_metrics(update: Update) -> dict[str, Any]:
    """Say what the updates did; an iteration in which no group taught anything has no update.

    Returns:
        The loss and its terms, averaged over updates; every other sum of the loss terms as a mean over tokens; the
        drift; the optimiser's norm and rate; tokens.
    """
    gradients, applied = update.gradients, update.applied
    num_tokens = sum(gradient.num_tokens for gradient in gradients)
    losses = _added([gradient.losses for gradient in gradients])
    losses = {name: total / max(1, len(gradients)) for name, total in losses.items()}
    sums = _added([gradient.sums for gradient in gradients])
    norms = [each.grad_norm for each in applied]
    return {
        "loss": sum(losses.values(), 0.0) if gradients else None,
        **{f"loss/{name}": total for name, total in losses.items()},
        **{name: total / max(1, num_tokens) for name, total in sums.items()},
        **(update.drift or Drift()).metrics(),
        "grad_norm": mean(norm for norm in norms if math.isfinite(norm)),
        "learning_rate": applied[-1].learning_rate if applied else None,
        "updates/skipped": sum(not math.isfinite(norm) for norm in norms),
        "tokens/trained": num_tokens,
        "tokens/unique": sum(gradient.num_unique_tokens for gradient in gradients),
        "tokens/rows": sum(gradient.num_row_tokens for gradient in gradients),
    }


def _added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
