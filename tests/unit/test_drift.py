"""The watch over sampler and learner: what it keeps, how much of it, and when it rings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from agentflow.config import Config
from agentflow.messages import Message, Reply
from agentflow.runs import Run
from agentflow.trainers.drift import MAX_FILES, MAX_TOKENS, Drift, DriftWatch, MismatchConfig, measure_drift
from agentflow.trajectory import Completion, Status, Trajectory, Turn


def trajectory(name: str, *turns: tuple[float, ...], version: int = 0) -> Trajectory:
    """A trajectory whose turns were sampled with these log-probs."""
    completions = [Completion(tuple(range(len(x))), x, "stop", version) for x in turns]
    done = tuple(Turn(0, (1,), c, (), Reply(Message("assistant", "x"))) for c in completions)
    return Trajectory(name, "task", 0, done, Status("completed"), success=True)


def drift(*differences: float, name: str = "t") -> Drift:
    """The drift of one trajectory whose tokens differ by so much."""
    sampler = (-1.0,) * len(differences)
    return measure_drift([trajectory(name, sampler)], np.array(sampler) + np.array(differences))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, config=Config(), env="e", model="m", seed=0, tensorboard=False)


def watch(run: Run, limit: float | None = 0.05, *, lags: bool = True) -> DriftWatch:
    config = MismatchConfig(max_mean_abs_logprob=limit)
    return DriftWatch(run, config, decode=lambda token: f"<{token}>", lags=lags)


def kept(run: Run) -> list[int]:
    return [iteration for iteration, _ in run.mismatches()]


def test_hand_computed_statistics() -> None:
    batch = [trajectory("a", (-1.0, -2.0), (-0.5,)), trajectory("b", (-3.0,))]
    found = measure_drift(batch, np.array([-0.9, -2.2, -0.5, -2.6]))
    assert found.mean_abs == pytest.approx((0.1 + 0.2 + 0.0 + 0.4) / 4)
    assert found.max_abs == pytest.approx(0.4)
    # WE-1: 0.0051709 for d = 0.1; the sampler's tokens, so d is the learner's minus the sampler's.
    k3 = [0.0051709, math.exp(-0.2) - 1 + 0.2, 0.0, math.exp(0.4) - 1 - 0.4]
    assert found.k3 == pytest.approx(sum(k3) / 4, abs=1e-7)
    assert found.worst is not None
    assert found.worst.trajectory.id == "b"
    assert found.worst.mean_abs == pytest.approx(0.4)
    assert found.worst.learner_logprobs_S.tolist() == [-2.6]


def test_other_weights_count_apart_and_are_never_the_worst() -> None:
    batch = [trajectory("new", (-1.0, -1.0), version=3), trajectory("old", (-1.0,), version=2)]
    found = measure_drift(batch, np.array([-1.1, -1.0, -3.0]), version=3)
    assert found.num_own == 2
    assert found.mean_abs == pytest.approx(0.05)
    assert found.stale_mean_abs == pytest.approx(2.0)
    assert found.worst is not None and found.worst.trajectory.id == "new"
    assert measure_drift(batch, np.array([-1.1, -1.0, -3.0]), version=4).metrics() == {
        "mismatch/num_own_tokens": 0,
        "mismatch/mean_abs_logprob": None,
        "mismatch/max_abs_logprob": None,
        "mismatch/k3": None,
        "mismatch/stale_mean_abs_logprob": pytest.approx(2.1 / 3),
    }


def test_a_batch_that_begins_with_older_weights_and_does_not_differ_has_a_worst_trajectory_too() -> None:
    batch = [trajectory("old", (-1.0,), version=2), trajectory("new", (-1.0,), version=3)]
    found = measure_drift(batch, np.array([-1.5, -1.0]), version=3)
    assert found.max_abs == 0.0
    assert found.worst is not None and found.worst.trajectory.id == "new"


def test_the_alarm_has_a_limit_of_its_own_for_tokens_of_older_weights(run: Run) -> None:
    batch = [trajectory("old", (-1.0,), version=2)]
    assert watch(run).observe(4, measure_drift(batch, np.array([-1.9]), version=3)) == ""
    said = watch(run).observe(5, measure_drift(batch, np.array([-2.1]), version=3))
    assert "mismatch/stale_mean_abs_logprob = 1.1 in iteration 5" in said
    assert "mismatch.max_stale_mean_abs_logprob = 1:" in said
    assert "worst trajectory" not in said
    assert watch(run, lags=False).observe(6, measure_drift(batch, np.array([-2.1]), version=3)) == ""


def test_the_alarm_rings_above_its_limit_and_says_what_to_check(run: Run) -> None:
    assert watch(run).observe(4, drift(0.05, -0.04)) == ""
    said = watch(run).observe(5, drift(0.05, -0.07))
    assert "mismatch/mean_abs_logprob = 0.06 in iteration 5" in said
    assert "mismatch.max_mean_abs_logprob = 0.05" in said
    assert str(run.mismatch_path(5)) in said
    assert "newest weights" in said
    assert watch(run, None).observe(6, drift(50.0)) == ""
    assert watch(run).observe(7, Drift(stale_mean_abs=0.9)) == ""
    # An infinite log-prob of the sampler is a drift; NaN is left to the guard of the gradients.
    assert watch(run).observe(8, drift(math.inf))
    assert watch(run).observe(9, drift(math.nan)) == ""


def test_the_file_holds_both_sides_of_every_token(run: Run) -> None:
    watch(run).observe(12, drift(0.25, -0.5, math.inf))
    assert run.mismatch_path(12) == run.path / "mismatch" / "iteration_000012.json"
    record = json.loads(run.mismatch_path(12).read_text())
    assert (record["trajectory"], record["task"], record["num_tokens"], record["first_token"]) == ("t", "task", 3, 0)
    assert record["mean_abs_logprob"] is None
    token = {"turn": 1, "policy_version": 0, "id": 1, "text": "<1>", "sampler": -1.0, "learner": -1.5}
    assert record["tokens"][1] == token
    assert record["tokens"][2]["learner"] is None


def test_of_a_long_trajectory_the_tokens_around_the_largest_difference_are_kept(run: Run) -> None:
    differences = [0.01] * 10_000
    differences[7_000] = 2.0
    watch(run).observe(1, drift(*differences))
    record = json.loads(run.mismatch_path(1).read_text())
    assert (record["num_tokens"], len(record["tokens"])) == (10_000, MAX_TOKENS)
    assert record["tokens"][7_000 - record["first_token"]]["learner"] == pytest.approx(1.0)
    assert run.mismatch_path(1).stat().st_size < 300_000


def test_little_is_kept_of_a_healthy_run_and_the_worst_of_any_other(run: Run) -> None:
    seen = watch(run)
    for iteration in range(1, 40):
        seen.observe(iteration, drift(1e-6 if iteration != 7 else 3e-6))
    assert kept(run) == [1, 7]
    for iteration in range(40, 90):
        seen.observe(iteration, drift(0.01 + 1e-4 * (iteration % 25)))
    assert len(kept(run)) == MAX_FILES
    worst = sorted(range(40, 90), key=lambda i: -(i % 25))[:MAX_FILES]
    assert kept(run) == sorted(worst)
    # The iteration that ends the run is kept, worse or not.
    assert watch(run, 0.009).observe(90, drift(0.01))
    assert len(kept(run)) == MAX_FILES and 90 in kept(run)


def test_a_resumed_run_drops_what_it_will_do_again_and_knows_the_rest(run: Run) -> None:
    for iteration in (1, 2, 3):
        watch(run, None).observe(iteration, drift(0.1 * iteration))
    run.rewind(2)
    assert kept(run) == [1, 2]
    watch(run, None).observe(3, drift(1e-6))
    assert kept(run) == [1, 2]
    run.close()
