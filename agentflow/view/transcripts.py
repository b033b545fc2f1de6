"""Episodes as rows for a page: what was said, what was sampled, what it earned."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from agentflow.messages import Message
from agentflow.roles import Exchange
from agentflow.trajectory import Episode, Group, Task, Trajectory, Turn

Decode: TypeAlias = Callable[[int], str]

_MAX_TEXT_CHARACTERS = 8_000
_MAX_TOKENS = 1_500


@dataclass(frozen=True, slots=True)
class TokenView:
    """One sampled token.

    Attributes:
        text: The token as text, or its id where there is no tokenizer.
        hint: Its id, log-prob and probability, for the hover.
        doubt: 0 where the policy was certain, up to 9 where the token was unlikely.
    """

    text: str
    hint: str
    doubt: int


@dataclass(frozen=True, slots=True)
class SpeechView:
    """One message.

    Attributes:
        speaker: The role, with the tool's name.
        text: What it says, cut where it is very long.
        calls: The tool calls, each as its name and its arguments as JSON.
        images: Its images, each with what it is in words and its `data:` address.
    """

    speaker: str
    text: str
    calls: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TurnView:
    """One turn.

    Attributes:
        number: Counted from 1.
        said: What the environment said before it.
        reply: What the policy said.
        error: Why the reply is not a well-formed message; empty if it is.
        reward: The environment's own reward.
        terms: The named reward terms, by name.
        tokens: The sampled tokens.
        num_context_tokens: The tokens that were new to the policy.
        ended: `stop` or `length`.
        duration_s: What the environment took to answer.
    """

    number: int
    said: tuple[SpeechView, ...]
    reply: SpeechView
    error: str
    reward: float
    terms: tuple[tuple[str, float], ...]
    tokens: tuple[TokenView, ...]
    num_context_tokens: int
    ended: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class ThreadView:
    """One thread of one role.

    Attributes:
        id: Its id in the run.
        role: Who speaks.
        status: How it ended, in words.
        turns: Its turns.
    """

    id: str
    role: str
    status: str
    turns: tuple[TurnView, ...]


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """One episode.

    Attributes:
        title: Best, worst or failed.
        prompt: The task.
        answer: The gold answer as JSON.
        success: Whether the task was solved; None where the score did not run.
        raw_return: The sum of the rewards; None if it failed.
        main: The thread that is paid for what is done.
        others: The threads of other roles, and those that were delegated.
        observation: What the environment said last.
        exchanges: What frozen models were asked and said, each under its role.
    """

    title: str
    prompt: str
    answer: str
    success: bool | None
    raw_return: float | None
    main: ThreadView
    others: tuple[ThreadView, ...]
    observation: tuple[SpeechView, ...]
    exchanges: tuple[tuple[str, tuple[SpeechView, ...]], ...]


def pick(groups: Iterable[Group], *, num_each: int = 2) -> list[tuple[str, Task, Episode]]:
    """Return the best, the worst and the failed episodes of an iteration, each with its title and task.

    Equal returns are told apart by the number of turns: the best is short, the worst is long. At most one episode of a
    task is shown in each class.
    """
    attempts = [(group.task, episode) for group in groups for episode in group.episodes]
    scored = [pair for pair in attempts if pair[1].main.raw_return is not None]
    scored.sort(key=lambda pair: (-(pair[1].main.raw_return or 0.0), len(pair[1].main.turns), pair[1].main.id))
    best = _one_per_task(scored)[:num_each]
    shown = {episode.main.id for _, episode in best}
    worst = [pair for pair in _one_per_task(scored[::-1]) if pair[1].main.id not in shown][:num_each]
    failed = _one_per_task([pair for pair in attempts if pair[1].main.raw_return is None])[:num_each]
    classes = (("best", best), ("worst", worst), ("failed", failed))
    return [(title, task, episode) for title, pairs in classes for task, episode in pairs]


def view_episode(title: str, task: Task, episode: Episode, *, decode: Decode) -> EpisodeView:
    """Return an episode as rows for a page."""
    main, *others = (_view_thread(trajectory, decode) for trajectory in episode.trajectories)
    return EpisodeView(
        title=title,
        prompt=_cut(task.prompt),
        answer=_cut(json.dumps(task.answer, ensure_ascii=False, default=repr)),
        success=episode.main.success,
        raw_return=episode.main.raw_return,
        main=main,
        others=tuple(others),
        observation=tuple(map(_view_message, episode.observation)),
        exchanges=tuple(map(_view_exchange, episode.exchanges)),
    )


def token_decoder(checkpoint: Path | None) -> Decode:
    """Return what turns one token id into text: the checkpoint's tokenizer, or the bare id where there is none."""
    file = checkpoint / "tokenizer.json" if checkpoint else None
    if file is None or not file.is_file():
        return lambda token: f"{token} "
    from tokenizers import Tokenizer  # noqa: PLC0415  few callers need it

    tokenizer = Tokenizer.from_file(str(file))
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)


def _one_per_task(pairs: Sequence[tuple[Task, Episode]]) -> list[tuple[Task, Episode]]:
    first: dict[str, tuple[Task, Episode]] = {}
    for task, episode in pairs:
        first.setdefault(task.id, (task, episode))
    return list(first.values())


def _view_thread(trajectory: Trajectory, decode: Decode) -> ThreadView:
    status = trajectory.status
    return ThreadView(
        id=trajectory.id,
        role=trajectory.role,
        status=_cut(": ".join(filter(None, (status.kind, status.reason, status.detail)))),
        turns=tuple(_view_turn(number, turn, decode) for number, turn in enumerate(trajectory.turns, 1)),
    )


def _view_turn(number: int, turn: Turn, decode: Decode) -> TurnView:
    completion = turn.completion
    sampled = list(zip(completion.token_ids, completion.logprobs, strict=True))[:_MAX_TOKENS]
    return TurnView(
        number=number,
        said=tuple(map(_view_message, turn.messages)),
        reply=_view_message(turn.reply.message),
        error=_cut(turn.reply.error),
        reward=turn.reward,
        terms=tuple(turn.terms.items()),
        tokens=tuple(_view_token(token, logprob, decode) for token, logprob in sampled),
        num_context_tokens=len(turn.context_ids),
        ended=completion.finish_reason,
        duration_s=turn.duration_s,
    )


def _view_exchange(exchange: Exchange) -> tuple[str, tuple[SpeechView, ...]]:
    said = (*exchange.messages, Message("assistant", exchange.reply))
    return exchange.role, tuple(map(_view_message, said))


def _view_message(message: Message) -> SpeechView:
    calls = tuple(
        (call.name, _cut(json.dumps(dict(call.arguments), ensure_ascii=False, default=repr)))
        for call in message.tool_calls
    )
    speaker = f"{message.role}: {message.name}" if message.name else message.role
    images = tuple((image.shown, image.url) for image in message.images)
    return SpeechView(speaker, _cut(message.content), calls, images)


def _view_token(token: int, logprob: float, decode: Decode) -> TokenView:
    probability = math.exp(min(logprob, 0.0))
    hint = f"id {token} · log-prob {logprob:.4f} · probability {probability:.3f}"
    return TokenView(decode(token).replace("\x00", "") or f"[{token}]", hint, round(9 * (1 - probability)))


def _cut(text: str) -> str:
    rest = len(text) - _MAX_TEXT_CHARACTERS
    return text if rest <= 0 else f"{text[:_MAX_TEXT_CHARACTERS]} … ({rest:,} more characters)"
