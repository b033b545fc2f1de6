"""From groups that were played to groups that are judged: named terms, and which groups are kept. Pure functions."""

from collections.abc import Sequence
from itertools import repeat

from agentflow.batch import Earned, Judged
from agentflow.rewards import ShapedTrajectory, Shaper
from agentflow.rollout import Collected
from agentflow.trainers.algorithm import Algorithm
from agentflow.trainers.slots.records import Now
from agentflow.trajectory import Group, Trajectory


def judge(collected: Collected, shaper: Shaper, algorithm: Algorithm, *, now: Now) -> tuple[Judged, ...]:
    """Say what groups earned by the run's rewards and the algorithm's, and which of them teach something.

    Args:
        collected: The groups of one round, and what their plans say of them.
        shaper: The run's rewards, at their place in the schedule.
        algorithm: Its `rewards` and `keep`.
        now: Where the run stands.
    """
    judged: Sequence[Judged] = [
        Judged(group, earnings(group, shaper, now.progress), note=note)
        for group, note in zip(collected.groups, collected.notes or repeat({}), strict=False)
    ]
    for reward in algorithm.rewards:
        judged = judged if reward.after_keep else reward(judged, now)
    for keep in algorithm.keep:
        judged = keep(judged, lambda each: [algorithm.advantage.credits(member) for member in each.earned], now)
    return tuple(judged)


def pay_kept(kept: Sequence[Judged], algorithm: Algorithm, *, now: Now) -> Sequence[Judged]:
    """Pay what is paid to kept groups only."""
    for reward in algorithm.rewards:
        kept = reward(kept, now) if reward.after_keep else kept
    return kept


def earnings(group: Group, shaper: Shaper, progress: float) -> tuple[Earned, ...]:
    """Return what each scored trajectory of a group earned, in its order.

    One that a limit ended before its first turn has nothing to learn from, and a failed one earned nothing: missing is
    never 0.
    """
    shaped = [(t, shaper.shape(t, progress)) for t in group.scored if t.turns]
    return tuple(earned(trajectory, rewards) for trajectory, rewards in shaped if rewards is not None)


def earned(trajectory: Trajectory, shaped: ShapedTrajectory) -> Earned:
    """Keep what each term paid by its name."""
    terms = tuple({name: entry.contribution for name, entry in turn.items()} for turn in shaped.ledger)
    return Earned(trajectory, shaped, terms, trajectory.success)


def as_said(trajectory: Trajectory) -> Earned:
    """Take a trajectory as it is, paid for nothing: what is imitated."""
    nothing = ShapedTrajectory(trajectory.id, (0.0,) * len(trajectory.turns), 0.0, 0.0, ({},) * len(trajectory.turns))
    return Earned(trajectory, nothing, ({},) * len(trajectory.turns), trajectory.success)
