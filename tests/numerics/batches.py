"""Batches of made-up trajectories: what they earned, and how many tokens each turn sampled."""

from collections.abc import Sequence

import numpy as np

from agentflow.batch import Batch, Earned, Judged, lay_out
from agentflow.messages import Message, Reply
from agentflow.rewards import ShapedTrajectory
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn


def earned_of(
    lengths: Sequence[int], rewards: Sequence[float], *, success: bool | None = None, name: str = "t", seed: int = 0
) -> Earned:
    """A trajectory with so many sampled tokens in each turn, and the reward of each turn."""
    rng = np.random.default_rng(seed)
    turns, prefix = [], 0
    for length in lengths:
        tokens = tuple(int(token) for token in rng.integers(2, 40, length))
        logprobs = tuple(float(x) for x in -rng.random(length) - 0.1)
        completion = Completion(tokens, logprobs, "stop", 0)
        turns.append(Turn(prefix, (1,), completion, (), Reply(Message("assistant", "x"))))
        prefix += 1 + length
    trajectory = Trajectory(name, "task", 0, tuple(turns), Status("completed"), success=success)
    shaped = ShapedTrajectory(name, tuple(rewards), sum(rewards), sum(rewards), ({},) * len(turns))
    return Earned(trajectory, shaped, tuple({"outcome": float(reward)} for reward in rewards), success)


def judged_of(*members: Earned) -> Judged:
    """A group of trajectories."""
    return Judged(Group(Task("task", ""), tuple(Episode((member.trajectory,)) for member in members)), members)


def batch_of(*lengths: Sequence[int]) -> Batch:
    """One group of trajectories that earned nothing."""
    return lay_out([judged_of(*(earned_of(each, [0.0] * len(each), seed=i) for i, each in enumerate(lengths)))])
