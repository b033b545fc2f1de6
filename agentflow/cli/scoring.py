"""`agentflow score`: pay for stored trajectories again, by other rules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentflow.cli.settings import merge_rewards
from agentflow.cli.tables import print_json, print_table
from agentflow.cli.words import overrides, section
from agentflow.config import gather
from agentflow.errors import ConfigError, DataError
from agentflow.metrics import mean
from agentflow.rewards import Shaper, ShapingConfig, load_shaping, reward_metrics
from agentflow.runs import StoredRun
from agentflow.trajectory import Group


def score(path: Path, words: Sequence[str], *, as_json: bool) -> None:
    """Print the rewards of every stored iteration under the run's shaping with some of its options changed.

    Raises:
        ConfigError: An option is unknown, or is none of `rewards`.
        DataError: The folder holds no run, or no trajectories.
    """
    run = StoredRun(path)
    changes = gather(overrides=overrides(words))
    if set(changes) - {"rewards"}:
        raise ConfigError(
            f"Scoring takes only `rewards` options, not {', '.join(changes)}.", "See `agentflow config show`."
        )
    stored = run.config
    shaping = load_shaping(merge_rewards(section(stored, "rewards"), section(changes, "rewards")))
    known = [*section(section(stored, "rewards"), "terms")]
    if changes:
        # Only the trajectories know the terms that the run did not pay for.
        known += _stored_terms(run)
    shaping.validate_terms(known)
    rows = rescore(run, shaping, num_iterations=section(stored, "run").get("iterations", 1))
    if as_json:
        print_json({"run": str(path), "iterations": rows})
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    print_table(names, [[row.get(name) for name in names] for row in rows])


def _stored_terms(run: StoredRun) -> set[str]:
    return {
        name
        for iteration in run.rollout_iterations()
        for group in run.groups(iteration)
        for trajectory in group.trajectories
        for turn in trajectory.turns
        for name in turn.terms
    }


def rescore(run: StoredRun, shaping: ShapingConfig, *, num_iterations: int) -> list[dict[str, Any]]:
    """Shape the stored trajectories as a training run with these rules would have shaped them.

    Args:
        run: The run.
        shaping: The rules.
        num_iterations: The length of the run that the rules' schedules refer to.

    Returns:
        For each stored iteration `iteration`, `success/mean` and the metrics of `rewards.reward_metrics`.

    Raises:
        DataError: Nothing is stored, or it is damaged.
    """
    iterations = run.rollout_iterations()
    if not iterations:
        raise DataError(f"{run.path} holds no trajectories.", "Give a run of `agentflow train`.")
    shaper = Shaper(shaping)
    return [_rescore_one(list(run.groups(i)), i, shaper, progress=(i - 1) / num_iterations) for i in iterations]


def _rescore_one(groups: Sequence[Group], iteration: int, shaper: Shaper, *, progress: float) -> dict[str, Any]:
    scored = [trajectory for group in groups for trajectory in group.scored]
    shaped = [rewards for t in scored if (rewards := shaper.shape(t, progress)) is not None]
    success = mean(float(bool(trajectory.success)) for trajectory in scored)
    if success is not None:
        shaper.observe(success)
    return {"iteration": iteration, "success/mean": success, **reward_metrics(shaped)}
