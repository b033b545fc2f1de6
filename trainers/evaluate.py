"""Evaluation: success with its uncertainty, by task and by term."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentflow.environment import Split, load_tasks
from agentflow.errors import RunAborted
from agentflow.metrics import mean, means_by_key, pass_at_k, success_interval
from agentflow.rollout import Collected
from agentflow.trainers.parts import Assembly
from agentflow.trajectory import Group, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found; every number is over the episodes that infrastructure did not break.

    Attributes:
        split: The tasks' split.
        num_tasks: Tasks that were posed.
        num_samples: Episodes of each.
        success: Mean success over tasks; None if nothing could be scored.
        interval: 95 % interval of the success, see `metrics.success_interval`.
        pass_at_k: For each k up to the samples of a task, the chance that one of k episodes succeeds.
        by_key: For each key of the tasks' metadata and each of its values, the mean success and the number of tasks.
        terms: For each reward term `turn`, its mean over the turns that report it, `episode`, the mean of its sum over
            the episodes that report it, and `num_episodes`, how many do.
        turns: Mean turns of an episode.
        status: Episodes by status and reason.
        duration_s: Wall seconds.
    """

    split: Split
    num_tasks: int
    num_samples: int
    success: float | None
    interval: tuple[float, float] | None
    pass_at_k: dict[int, float]
    by_key: dict[str, dict[str, dict[str, float]]]
    terms: dict[str, dict[str, float]]
    turns: float | None
    status: dict[str, int]
    duration_s: float


def evaluate(
    assembly: Assembly,
    *,
    split: Split = "heldout",
    num_tasks: int = 200,
    num_samples: int = 1,
    seed: int = 0,
    label: str = "evaluation",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, Collected]:
    """Play tasks and say how well it went.

    Args:
        assembly: What samples.
        split: Which tasks.
        num_tasks: The first so many tasks of the split.
        num_samples: Episodes of each task.
        seed: Fixes the sampling.
        label: Starts the ids of the trajectories.
        progress: Called with episodes done and in all.

    Raises:
        DataError: The split has no tasks, or some that cannot be told apart.
        RunAborted: Too many episodes failed, or a frozen model has used up its tokens.
    """
    tasks = load_tasks(assembly.make_environment(), split)[:num_tasks]
    collected = assembly.rollout.run(tasks, group_size=num_samples, seed=seed, label=label, progress=progress)
    if collected.spent:
        raise RunAborted(f"The evaluation was not finished: {collected.spent}.")
    return summarise(collected, split=split, num_samples=num_samples), collected


def heldout_metrics(found: Evaluation) -> dict[str, Any]:
    """Return what a training run logs of an evaluation."""
    low, high = found.interval or (None, None)
    return {
        "heldout/success": found.success,
        "heldout/success_low": low,
        "heldout/success_high": high,
        "heldout/turns": found.turns,
        "time/evaluation_s": found.duration_s,
    }


def summarise(collected: Collected, *, split: Split, num_samples: int) -> Evaluation:
    """Summarise groups of trajectories; see `Evaluation`."""
    groups = [group for group in collected.groups if group.scored]
    rates = [_success_rate(group) for group in groups]
    scored = [trajectory for group in groups for trajectory in group.scored]
    complete = [group for group in groups if len(group.scored) == num_samples]
    status: dict[str, int] = {}
    for trajectory in collected.trajectories:
        name = "/".join(filter(None, (trajectory.status.kind, trajectory.status.reason)))
        status[name] = status.get(name, 0) + 1
    return Evaluation(
        split=split,
        num_tasks=len(collected.groups),
        num_samples=num_samples,
        success=mean(rates),
        interval=success_interval(rates) if rates else None,
        pass_at_k={k: value for k in range(1, num_samples + 1) if (value := _pass_at(complete, k)) is not None},
        by_key=_tables(groups),
        terms=_terms(scored),
        turns=mean(len(trajectory.turns) for trajectory in scored),
        status=status,
        duration_s=collected.duration_s,
    )


def _success_rate(group: Group) -> float:
    return sum(bool(trajectory.success) for trajectory in group.scored) / len(group.scored)


def _pass_at(groups: Sequence[Group], k: int) -> float | None:
    return mean(pass_at_k(len(group.scored), sum(bool(t.success) for t in group.scored), k) for group in groups)


def _tables(groups: Sequence[Group]) -> dict[str, dict[str, dict[str, float]]]:
    """Group success by each key of the metadata whose values are few enough for a table."""
    keys = sorted({key for group in groups for key in group.task.metadata})
    tables = {}
    for key in keys:
        rows = [(_cell(group.task, key), {"success": _success_rate(group)}) for group in groups]
        if all(name is not None for name, _ in rows) and 1 < len({name for name, _ in rows}) <= _MAX_ROWS:
            counts: dict[str, int] = {}
            for name, _ in rows:
                counts[str(name)] = counts.get(str(name), 0) + 1
            means = means_by_key((str(name), row) for name, row in rows)
            tables[key] = {name: {**row, "num_tasks": counts[name]} for name, row in sorted(means.items())}
    return tables


_MAX_ROWS = 12


def _cell(task: Task, key: str) -> Any:
    value = task.metadata.get(key)
    return value if isinstance(value, str | int | bool) else None


def _terms(trajectories: Sequence[Trajectory]) -> dict[str, dict[str, float]]:
    """Average each term over the turns and over the episodes that report it: what is absent is not 0."""
    reported: dict[str, list[list[float]]] = {}
    for trajectory in trajectories:
        for name in {name for turn in trajectory.turns for name in turn.terms}:
            values = [turn.terms[name] for turn in trajectory.turns if name in turn.terms]
            reported.setdefault(name, []).append(values)
    return {
        name: {
            "turn": sum(map(sum, episodes)) / sum(map(len, episodes)),
            "episode": sum(map(sum, episodes)) / len(episodes),
            "num_episodes": len(episodes),
        }
        for name, episodes in sorted(reported.items())
    }
