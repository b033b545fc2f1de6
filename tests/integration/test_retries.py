"""An episode that fails for reasons of infrastructure is tried again, as often as the run says."""

import pytest

from tests.integration.test_rollout_faults import Fragile, collect, task


def test_passing_fault_is_retried_and_leaves_no_trace() -> None:
    collected = collect([task("tool", times=1)])
    (trajectory,) = collected.trajectories
    assert (trajectory.status.kind, trajectory.raw_return) == ("completed", 1.0)
    assert collected.num_retried == 1
    (sound,) = collect([task("tool", times=0)]).trajectories
    assert trajectory.turns[0].completion == sound.turns[0].completion


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_episode_is_played_once_more_for_each_retry_and_no_oftener(retries: int) -> None:
    (mended,) = collect([task("reset", times=retries)], retries=retries).trajectories
    assert (mended.status.kind, Fragile.broken_so_far) == ("completed", {"reset": retries + 1})
    (broken,) = collect([task("reset", times=retries + 1)], retries=retries).trajectories
    assert (broken.status.kind, Fragile.broken_so_far) == ("failed", {"reset": retries + 1})
