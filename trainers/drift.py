"""How far the sampler has drifted from the learner: what is measured, what is kept to look at, when the run stops.

    d = log pi_learner - log pi_sampler      for each sampled token, under the weights that the iteration starts from

The learner's log-probs are those of its first forward pass, before any update, so the comparison costs no pass of its
own. Where sampler and learner hold the same weights, d is what is left: other kernels, another precision, or a bug.
Tokens of older weights differ for a good reason; they are counted apart.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from agentflow.config import Config
from agentflow.maths.losses import kl_estimate
from agentflow.runs import Run
from agentflow.trajectory import Trajectory

Floats = NDArray[np.float64]

NOTEWORTHY = 0.01
"""Mean |d| of a trajectory, in nats, from which it is worth a file whatever came before."""
MAX_FILES = 20
MAX_TOKENS = 2048


class MismatchConfig(Config):
    """When sampler and learner count as having drifted apart.

    With the starter policies the mean is below 2e-7 nats in float32 and below 0.003 in bfloat16. It is above 0.1 where
    the sampler is ten updates of 1e-4 behind, and above 7 where one layer's weights were not loaded.
    """

    max_mean_abs_logprob: float | None = Field(
        default=0.05,
        gt=0,
        description="Mean difference of the two log-probs, in nats, that stops the run before it updates; null is off.",
    )
    max_stale_mean_abs_logprob: float | None = Field(
        default=1.0,
        gt=0,
        description="The same of tokens that older weights sampled (run.max_staleness), which mixes drift and lag.",
    )


@dataclass(frozen=True, slots=True)
class WorstTrajectory:
    """The trajectory on which sampler and learner differ most, by its mean |d|.

    Attributes:
        trajectory: What was sampled.
        learner_logprobs_S: [S] the learner's log-probs of its sampled tokens.
        mean_abs: Mean |d| over its tokens of the learner's own weights.
        max_abs: Largest |d| among them.
    """

    trajectory: Trajectory
    learner_logprobs_S: Floats
    mean_abs: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class Drift:
    """What one iteration's trajectories say about sampler and learner.

    Attributes:
        num_own: Tokens that were sampled by the learner's own weights.
        mean_abs: Mean |d| over them; None if there are none.
        max_abs: Largest |d| among them.
        k3: Mean of exp(d) - d - 1 over them: an unbiased estimate of KL(sampler || learner), in nats.
        stale_mean_abs: Mean |d| over tokens of other weights, which mixes drift and lag; None if there are none.
        worst: The trajectory that differs most; None if no token was sampled by the learner's own weights.
    """

    num_own: int = 0
    mean_abs: float | None = None
    max_abs: float | None = None
    k3: float | None = None
    stale_mean_abs: float | None = None
    worst: WorstTrajectory | None = None

    def metrics(self) -> dict[str, float | None]:
        """Return the metrics by name."""
        return {
            "mismatch/num_own_tokens": self.num_own,
            "mismatch/mean_abs_logprob": self.mean_abs,
            "mismatch/max_abs_logprob": self.max_abs,
            "mismatch/k3": self.k3,
            "mismatch/stale_mean_abs_logprob": self.stale_mean_abs,
        }


def measure_drift(trajectories: Sequence[Trajectory], learner_S: Floats, *, version: int | None = None) -> Drift:
    """Compare the learner's log-probs with the sampler's.

    Args:
        trajectories: The batch.
        learner_S: [S] the learner's log-probs, in canonical order (trajectory, turn, token).
        version: The version of the learner's weights; None takes every token as sampled by them.
    """
    completions = [(i, turn.completion) for i, t in enumerate(trajectories) for turn in t.turns]
    owner_S = np.repeat([i for i, _ in completions], [len(c.token_ids) for _, c in completions])
    own = [version is None or c.policy_version == version for _, c in completions]
    own_S = np.repeat(own, [len(c.token_ids) for _, c in completions])
    sampler_S = np.array([x for _, c in completions for x in c.logprobs], dtype=np.float64)
    assert learner_S.shape == sampler_S.shape, "one log-prob of the learner for each sampled token"
    abs_S = np.abs(learner_S - sampler_S)
    stale = float(abs_S[~own_S].mean()) if (~own_S).any() else None
    if not own_S.any():
        return Drift(stale_mean_abs=stale)
    k3_S = kl_estimate(torch.from_numpy(sampler_S[own_S]), torch.from_numpy(learner_S[own_S]), "k3")
    index = _worst(abs_S[own_S], owner_S[own_S])
    of_worst_S = owner_S == index
    return Drift(
        num_own=int(own_S.sum()),
        mean_abs=float(abs_S[own_S].mean()),
        max_abs=float(abs_S[own_S].max()),
        k3=float(k3_S.mean()),
        stale_mean_abs=stale,
        worst=WorstTrajectory(
            trajectories[index],
            learner_S[of_worst_S],
            mean_abs=float(abs_S[of_worst_S & own_S].mean()),
            max_abs=float(abs_S[of_worst_S & own_S].max()),
        ),
    )


def _worst(abs_S: Floats, owner_S: NDArray[np.intp]) -> int:
    """Return the trajectory with the largest mean; one with a number that is not finite is worse than any other."""
    counts_N = np.bincount(owner_S)
    means_N = np.bincount(owner_S, weights=np.nan_to_num(abs_S, nan=np.inf)) / np.maximum(counts_N, 1)
    # Where no number differs at all, the first trajectory may be one without a number.
    return int(np.where(counts_N > 0, means_N, -1.0).argmax())


class DriftWatch:
    """Keeps the worst trajectories of a run in its folder, and says when sampler and learner have drifted apart.

    `mismatch/iteration_000012.json` is written where the iteration's worst trajectory differs by `NOTEWORTHY` or more
    than any before; the `MAX_FILES` worst of the run stay.

    Args:
        run: The run; what its folder holds from before it was resumed counts.
        config: The threshold.
        decode: One token as text.
        lags: Whether older weights sample as well; without, tokens of another version are those of a policy that only
            plays, such as the scripted one.
    """

    def __init__(self, run: Run, config: MismatchConfig, *, decode: Callable[[int], str], lags: bool) -> None:
        self._run = run
        self._limit = config.max_mean_abs_logprob
        self._stale_limit = config.max_stale_mean_abs_logprob if lags else None
        self._decode = decode
        self._kept = {iteration: _severity(record["mean_abs_logprob"]) for iteration, record in run.mismatches()}

    def observe(self, iteration: int, drift: Drift) -> str:
        """Take in what was measured before an iteration's first update.

        Returns:
            What is wrong and what to check, or nothing.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        above = [
            f"mismatch/{name} = {value:.4g} in iteration {iteration} is above mismatch.max_{name} = {limit:g}"
            for name, value, limit in (
                ("mean_abs_logprob", drift.mean_abs, self._limit),
                ("stale_mean_abs_logprob", drift.stale_mean_abs, self._stale_limit),
            )
            # NaN does not ring: the learner's own guard counts gradients that are not finite.
            if limit is not None and value is not None and value > limit
        ]
        if drift.worst is not None:
            self._keep(iteration, drift.worst, must=bool(above))
        if not above:
            return ""
        seen = f"{self._run.mismatch_path(iteration)} has the worst trajectory token by token. " if drift.worst else ""
        return (
            f"{' and '.join(above)}: sampler and learner do not compute the same policy, and the "
            "weights were not updated from it. Check that the sampler holds the learner's newest weights, and that "
            f"both have the same tokenizer, temperature, adapters and precision. {seen}"
            "If the difference is meant, raise the limit or set it to null, with a correction "
            "(algorithm.loss.clipped.correction.kind=tis)."
        )

    def _keep(self, iteration: int, worst: WorstTrajectory, *, must: bool) -> None:
        severity = _severity(worst.mean_abs)
        record = severity > max(self._kept.values(), default=-1.0)
        if not (must or record or severity >= NOTEWORTHY):
            return
        kept = sorted({**self._kept, iteration: severity}.items(), key=lambda item: item[1], reverse=True)[:MAX_FILES]
        if must and iteration not in dict(kept):
            kept[-1] = (iteration, severity)
        if iteration in dict(kept):
            content = json.dumps(describe_worst(iteration, worst, decode=self._decode))
            self._run.write_mismatch(iteration, content, keep=dict(kept))
            self._kept = dict(kept)


def describe_worst(iteration: int, worst: WorstTrajectory, *, decode: Callable[[int], str]) -> dict[str, Any]:
    """Return a trajectory's difference as JSON values, NaN and infinity as null.

    Of more than `MAX_TOKENS` sampled tokens, those around the largest difference are listed.
    """
    turns = worst.trajectory.turns
    rows = [
        (number, turn.completion.policy_version, token, sampler)
        for number, turn in enumerate(turns, 1)
        for token, sampler in zip(turn.completion.token_ids, turn.completion.logprobs, strict=True)
    ]
    abs_S = np.abs(worst.learner_logprobs_S - np.array([row[3] for row in rows]))
    peak = int(np.nan_to_num(abs_S, nan=np.inf).argmax())
    first = max(0, min(peak - MAX_TOKENS // 2, len(rows) - MAX_TOKENS))
    return {
        "iteration": iteration,
        "trajectory": worst.trajectory.id,
        "task": worst.trajectory.task_id,
        "mean_abs_logprob": _finite(worst.mean_abs),
        "max_abs_logprob": _finite(worst.max_abs),
        "num_tokens": len(rows),
        "first_token": first,
        "tokens": [
            {
                "turn": number,
                "policy_version": version,
                "id": token,
                "text": decode(token),
                "sampler": _finite(sampler),
                "learner": _finite(float(worst.learner_logprobs_S[first + offset])),
            }
            for offset, (number, version, token, sampler) in enumerate(rows[first : first + MAX_TOKENS])
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _severity(mean_abs: float | None) -> float:
    """Return what trajectories are ranked by: a mean that is no finite number is the worst."""
    return mean_abs if mean_abs is not None and math.isfinite(mean_abs) else math.inf
