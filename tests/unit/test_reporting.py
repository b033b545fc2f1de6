"""From trajectories to the algorithm's records and to metrics."""

from agentflow.messages import Message, Reply
from agentflow.trainers.engines.base import Update
from agentflow.trainers.reporting import group_metrics, rollout_metrics, update_metrics
from agentflow.trainers.slots.records import Now
from agentflow.trainers.slots.rewards import Shuffled
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn
from tests.numerics.batches import earned_of, judged_of


def trajectory(status: Status, *, success: bool | None, num_turns: int = 1) -> Trajectory:
    completion = Completion((5, 6), (-0.1, -0.2), "stop", 0)
    turns = (Turn(0, (1, 2), completion, (), Reply(Message("assistant", "x"))),) * num_turns
    return Trajectory("t", "task", 0, turns, status, success)


def test_failed_episodes_count_in_no_mean_and_by_their_cause() -> None:
    done = trajectory(Status("completed"), success=True, num_turns=3)
    cut = trajectory(Status("truncated", "turns"), success=False, num_turns=5)
    lost = trajectory(Status("failed", "tool", "boom"), success=None)
    metrics = rollout_metrics([Group(Task("task", ""), tuple(Episode((one,)) for one in (done, cut, lost, done)))])
    assert metrics["success/mean"] == 2 / 3
    assert metrics["turns/mean"] == 11 / 3
    assert (metrics["failed/tool"], metrics["failed/score"], metrics["truncated/turns"]) == (0.25, 0.0, 0.25)
    assert metrics["tokens/sampled"] == 2 * (3 + 5 + 1 + 3)


def test_groups_without_a_solved_attempt_are_counted_whatever_they_are_paid() -> None:
    lost, solved, missed = (
        trajectory(Status("failed", "tool"), success=None),
        trajectory(Status("completed"), success=True),
        trajectory(Status("truncated", "turns"), success=False),
    )
    groups = [
        Group(Task("task", ""), tuple(Episode((one,)) for one in members))
        for members in ((lost, missed), (missed, solved), (lost, lost))
    ]
    assert rollout_metrics(groups)["groups/unsolved_fraction"] == 0.5


def test_nothing_scored_is_missing_and_not_zero() -> None:
    lost = trajectory(Status("failed", "policy"), success=None)
    metrics = rollout_metrics([Group(Task("task", ""), (Episode((lost,)),))])
    assert (metrics["success/mean"], metrics["groups/unsolved_fraction"]) == (None, None)
    assert metrics["failed/policy"] == 1.0


def test_iteration_without_an_update_has_no_numbers() -> None:
    metrics = update_metrics(Update())
    missing = ("loss", "grad_norm", "learning_rate", "mismatch/mean_abs_logprob")
    assert [metrics[name] for name in missing] == [None] * 4
    assert metrics["tokens/trained"] == 0


def test_groups_that_teach_nothing_are_counted_by_cause_kept_or_dropped() -> None:
    causes = ["", "all_solved", "none_solved", "", "", "all_solved", "", ""]
    metrics = group_metrics(causes, num_kept=5)
    assert metrics["groups/mixed_fraction"] == 5 / 8
    assert (metrics["groups/degenerate/all_solved"], metrics["groups/degenerate/none_solved"]) == (2, 1)
    assert (metrics["groups/num"], metrics["groups/dropped"]) == (8, 3)
    kept = group_metrics(causes, num_kept=8)
    assert (kept["groups/mixed_fraction"], kept["groups/dropped"]) == (5 / 8, 0)


def test_shuffling_deals_out_the_same_returns_and_nothing_else() -> None:
    group = judged_of(*(earned_of([3, 4], [0.25 * k, 0.5 * k], success=k > 1) for k in range(6)))
    (dealt,) = Shuffled()([group], Now(iteration=3, seed=3))
    returns = [[member.rewards_K.sum() for member in judged.earned] for judged in (group, dealt)]
    assert sorted(returns[0]) == sorted(returns[1]) and returns[0] != returns[1]
    assert [member.lengths_K for member in dealt.earned] == [(3, 4)] * 6
    assert [member.success for member in dealt.earned] == [member.success for member in group.earned]
    assert all(member.rewards_K[0] == 0 for member in dealt.earned)
    assert Shuffled()([group], Now(iteration=3, seed=3)) == [dealt]
