"""The policy that samples in this process, from the very weights that the learner updates.

Whatever waits is batched: an episode joins at the next decoding step, whichever turn the others are in, and leaves
when its turn is over. Keys and values stay remembered between the turns of an episode.

The draw of a token depends on the turn's seed and on the probabilities alone. Probabilities depend, in the last bit,
on what else is in the batch; with `settle`, which waits until every episode that can join has joined, batches are a
function of the seed, and so is the run.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentflow.errors import PolicyFailure
from agentflow.policies.cache import CacheLayout, Feed, KeyValueCache
from agentflow.policy import Sampling
from agentflow.scoring.interface import logit_rule
from agentflow.scoring.positions import max_positions
from agentflow.trajectory import Completion, FinishReason

_MAX_FEED_TOKENS = 16384  # bounds the memory of one forward pass; longer queues are fed over several steps


@dataclass(slots=True, eq=False)
class _Session:
    """What is remembered of one trajectory: its row, and the tokens whose keys and values the row holds."""

    row: int
    remembered: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    """One turn being sampled."""

    session: str
    prompt_ids: Sequence[int]
    sampling: Sampling
    future: asyncio.Future[Completion]
    rng: random.Random
    pending: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


async def _settle_at_once() -> None:
    await asyncio.sleep(0)


class TransformersPolicy:
    """Sample from a transformers model in this process.

    Args:
        model: A causal language model that uses AgentFlow's attention (`attention.use_agentflow_attention`).
        stop_ids: Tokens that end a turn.
        max_length: Most tokens of one episode; None for the model's own limit.
    """

    def __init__(self, model: PreTrainedModel, stop_ids: Sequence[int], *, max_length: int | None = None) -> None:
        self.model = model
        self.version = 0
        self.settle: Callable[[], Awaitable[None]] = _settle_at_once
        """Awaited before each decoding step; the rollout sets it to hold a batch back for episodes about to join."""
        self._stop_ids = frozenset(stop_ids)
        self.max_length: int = max_length or max_positions(model)
        config: Any = model.config.get_text_config()
        self._cache = KeyValueCache(num_layers=config.num_hidden_layers, device=model.device, dtype=model.dtype)
        self._sessions: dict[str, _Session] = {}
        self._released: set[str] = set()
        self._waiting: list[_Request] = []
        self._active: list[_Request] = []
        self._driver: asyncio.Task[None] | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Completion:
        """Sample one turn; see `policy.Policy`.

        Raises:
            PolicyFailure: The prompt leaves no room for a token, or the model failed.
        """
        room = self.max_length - len(prompt_ids)
        if room < 1:
            raise PolicyFailure(f"a prompt of {len(prompt_ids)} tokens leaves no room in {self.max_length}")
        request = _Request(
            session=session,
            prompt_ids=prompt_ids,
            sampling=sampling,
            future=asyncio.get_running_loop().create_future(),
            rng=random.Random(sampling.seed),  # noqa: S311  a reproducible draw, not a secret
        )
        self._waiting.append(request)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.ensure_future(self._drive())
        return await request.future

    def release(self, session: str) -> None:
        """Forget a session; its row is free from the next step on."""
        self._waiting = [request for request in self._waiting if request.session != session]
        self._active = [request for request in self._active if request.session != session]
        self._released.add(session)

    def serving(self, folder: Path) -> AbstractContextManager[None]:
        """Do nothing: this policy is always ready, and logs nothing."""
        return nullcontext()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Let the weights change within: what is remembered no longer fits them."""
        self.forget()
        yield
        self.version += 1

    def metrics(self) -> dict[str, float]:
        """Return nothing: there is nothing that could be restarted."""
        return {}

    def forget(self) -> None:
        """Forget all sessions, and free their memory where it is much or another's."""
        self._sessions.clear()
        self._released.clear()
        self._cache.forget()

    async def _drive(self) -> None:
        """Step until nothing waits and nothing is being decoded."""
        try:
            while self._waiting or self._active:
                await self.settle()
                self._admit()
                if self._active:
                    self._step()
        except Exception as error:  # noqa: BLE001  whatever broke, every waiting episode must hear of it
            failed = self._active + self._waiting
            self._active, self._waiting = [], []
            for request in failed:
                if not request.future.done():
                    request.future.set_exception(PolicyFailure(f"{type(error).__name__}: {error}"))

    def _admit(self) -> None:
        """Let waiting requests join while the step's tokens stay within bounds; one always may.

        Rows are given and taken in the order of the sessions' names, not in that of their arrival, which depends on
        threads and the world outside.
        """
        for session in sorted(self._released):
            self._free(session)
        self._released.clear()
        self._waiting.sort(key=lambda request: request.session)
        fed = len(self._active)
        while self._waiting:
            request = self._waiting[0]
            state = self._sessions.get(request.session)
            kept = _common_prefix(state.remembered, request.prompt_ids) if state else 0
            # The last prompt token is always fed, because its output predicts the first sampled one.
            kept = min(kept, len(request.prompt_ids) - 1)
            fed += len(request.prompt_ids) - kept
            if self._active and fed > _MAX_FEED_TOKENS:
                return
            state = state or self._sessions.setdefault(request.session, _Session(row=len(self._sessions)))
            del state.remembered[kept:]
            request.pending = list(request.prompt_ids[kept:])
            self._active.append(self._waiting.pop(0))

    @torch.inference_mode()
    def _free(self, session: str) -> None:
        """Give a row back; the last row moves into its place."""
        gone = self._sessions.pop(session, None)
        if gone is None or gone.row == len(self._sessions):
            return
        last = next(state for state in self._sessions.values() if state.row == len(self._sessions))
        if last.remembered:
            self._cache.move(last.row, gone.row, len(last.remembered))
        last.row = gone.row

    @torch.inference_mode()
    def _step(self) -> None:
        """Feed each active request its pending tokens and sample its next one."""
        active = [request for request in self._active if not request.future.done()]
        if not active:
            self._active = []
            return
        states = [self._sessions[request.session] for request in active]
        feeds = [
            Feed(state.row, len(state.remembered), request.pending)
            for request, state in zip(active, states, strict=True)
        ]
        self._cache.reserve(len(self._sessions), max(feed.past + len(feed.token_ids) for feed in feeds))
        logits = self._forward(CacheLayout(self._cache, feeds, len(self._sessions)))
        tokens, logprobs = _draw(logits, active)
        for request, state, token, logprob in zip(active, states, tokens, logprobs, strict=True):
            state.remembered.extend(request.pending)
            request.pending = [token]
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            self._finish_if_over(request, state)
        self._active = [request for request in active if not request.future.done()]

    def _forward(self, layout: CacheLayout) -> Tensor:
        """Return the logits [B, V] that follow the last fed token of each row."""
        decoder = self.model.get_decoder()  # type: ignore[no-untyped-call]
        hidden = decoder(
            input_ids=layout.token_ids_T[None],
            position_ids=layout.positions_T[None],
            attention_layout=layout,
            use_cache=False,
        ).last_hidden_state
        head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return logit_rule(self.model)(head(hidden[0, layout.last_B])).float()

    def _finish_if_over(self, request: _Request, state: _Session) -> None:
        reason: FinishReason | None = None
        if request.token_ids[-1] in self._stop_ids:
            reason = "stop"
        elif len(request.token_ids) >= request.sampling.max_tokens or len(state.remembered) + 1 >= self.max_length:
            reason = "length"
        if reason is not None:
            completion = Completion(tuple(request.token_ids), tuple(request.logprobs), reason, self.version)
            request.future.set_result(completion)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    count = min(len(left), len(right))
    if list(left[:count]) == list(right[:count]):
        return count
    return next(i for i in range(count) if left[i] != right[i])


def _draw(logits: Tensor, requests: Sequence[_Request]) -> tuple[list[int], list[float]]:
    """Sample one token a row by inverting the cumulative distribution at the request's own uniform number.

    Args:
        logits: [B, V] float32.
        requests: B requests; their generators advance by one number each.

    Returns:
        B token ids, and B natural log-probs after temperature (before it where the temperature is 0).
    """
    temperatures = torch.tensor([request.sampling.temperature or 1.0 for request in requests], device=logits.device)
    logprobs = torch.log_softmax(logits / temperatures[:, None], dim=-1)
    uniforms = torch.tensor([request.rng.random() for request in requests], dtype=torch.float64, device=logits.device)
    cumulative = logprobs.double().exp().cumsum(-1)
    drawn = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    drawn = drawn.clamp_max(logits.shape[-1] - 1)
    greedy = torch.tensor([request.sampling.temperature == 0 for request in requests], device=logits.device)
    tokens = torch.where(greedy, logits.argmax(-1), drawn)
    return tokens.tolist(), logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
