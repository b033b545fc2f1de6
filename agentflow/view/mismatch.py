"""Where sampler and learner differed most, token by token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentflow.runs import StoredRun
from agentflow.view.transcripts import TokenView

_DARKEST = 1.0
"""Difference in nats from which a token is as dark as it gets."""


@dataclass(frozen=True, slots=True)
class MismatchView:
    """One trajectory on which sampler and learner differed.

    Attributes:
        iteration: The iteration in which it was sampled.
        trajectory: Its id.
        mean_abs: Mean difference of the two log-probs in nats; None if it is not finite.
        max_abs: Largest difference; None if it is not finite.
        tokens: The sampled tokens; the doubt of each is the size of its difference.
    """

    iteration: int
    trajectory: str
    mean_abs: float | None
    max_abs: float | None
    tokens: tuple[TokenView, ...]


def view_mismatches(run: StoredRun) -> list[MismatchView]:
    """Return the trajectory of the run that differs most, and that of the newest iteration if it is another one.

    Raises:
        DataError: A stored trajectory is damaged.
    """
    stored = [record for _, record in run.mismatches()]
    if not stored:
        return []
    means = [record["mean_abs_logprob"] for record in stored]
    worst = stored[means.index(None) if None in means else means.index(max(means))]
    return [_view(record) for record in ([worst] if worst is stored[-1] else [worst, stored[-1]])]


def _view(record: Mapping[str, Any]) -> MismatchView:
    return MismatchView(
        iteration=record["iteration"],
        trajectory=record["trajectory"],
        mean_abs=record["mean_abs_logprob"],
        max_abs=record["max_abs_logprob"],
        tokens=tuple(map(_view_token, record["tokens"])),
    )


def _view_token(token: Mapping[str, Any]) -> TokenView:
    sampler, learner = token["sampler"], token["learner"]
    difference = _DARKEST if sampler is None or learner is None else abs(learner - sampler)
    doubt = round(9 * min(difference / _DARKEST, 1.0))
    hint = f"id {token['id']} · turn {token['turn']} · sampler {_number(sampler)} · learner {_number(learner)}"
    return TokenView(token["text"].replace("\x00", "") or f"[{token['id']}]", hint, doubt)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
