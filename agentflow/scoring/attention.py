"""Switch a model to AgentFlow's attention, after tests that prove it computes the same as before.

A tiny row of tokens is run twice in one sequence, as two roots of a forest. What is compared is exact wherever it can
be, so that a difference is never a matter of size: what a token depends on is read off gradients, which are zero or
not; what follows the head is compared bit by bit, on made-up outputs; how far a layer sees is read off the masks that
transformers itself would build.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from agentflow.errors import ModelError
from agentflow.scoring.interface import IMPLEMENTATION, delegate
from agentflow.scoring.positions import limit_positions
from agentflow.scoring.rules import AttentionRule, LogitRule, dense_attention, logit_rules

_PROBE: Final = "agentflow_probe"
_LENGTH: Final = 6
"""Tokens of the row that is run twice."""
_WATCHED: Final = 3
"""The token of the second copy whose dependence on all others is measured."""
_OTHER: Final = "Choose an architecture built on transformers' attention interface, like Qwen3, Llama or Gemma 3."


@dataclass(frozen=True, slots=True)
class _Sight:
    """Stands for a mask that is not the plain causal one, on its way from transformers' mask functions to a layer.

    Attributes:
        window: How many keys of its row a query sees.
        problem: Why a layer with this mask must be refused; empty where it need not. Not every mask is used.
    """

    window: int | None
    problem: str = ""


@dataclass(slots=True)
class _Probe:
    """A layout of two copies of a row, one after the other, that notes which layers call it."""

    calls: list[int] = field(default_factory=list)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, rule: AttentionRule) -> Tensor:
        """Compute both copies; shapes as in `AttentionLayout.attend`."""
        self.calls.append(layer)
        sees = _sees(_LENGTH, rule.window).to(query.device)
        halves = [
            dense_attention(q, k, v, sees=sees, rule=rule)
            for q, k, v in zip(query.chunk(2, 2), key.chunk(2, 2), value.chunk(2, 2), strict=True)
        ]
        return torch.cat(halves, dim=2).transpose(1, 2)


def use_agentflow_attention(model: PreTrainedModel) -> None:
    """Switch a loaded model to layouts, after tests that prove it computes the same as before.

    Args:
        model: A causal language model, its weights in memory; changed in place.

    Raises:
        ModelError: The architecture does not go through transformers' attention interface in every layer, lets tokens
            influence each other beside it, ignores position ids, sees in a way that layouts do not compute (chunks,
            biases, both directions), or its logits are not a known function of its decoder's last hidden states.
    """
    if model.config._attn_implementation == IMPLEMENTATION:
        return
    architecture = type(model).__name__
    before: Any = model.config._attn_implementation
    training = model.training
    model.train(False)
    try:
        hidden, rule = _native(model)
        _check_layouts(model, hidden)
    except Exception as error:
        model.set_attn_implementation(before)
        if isinstance(error, ModelError):
            raise
        lines = str(error).strip().splitlines() or [""]
        problem = f"{architecture} cannot be run on AgentFlow's attention: {type(error).__name__}: {lines[0]}."
        raise ModelError(problem, _OTHER) from error
    finally:
        model.train(training)
    limit_positions(model)
    model.agentflow_logits = rule  # type: ignore[assignment]


def _tokens(model: PreTrainedModel) -> Tensor:
    """Return the [1, L] tokens of the probe."""
    vocabulary: int = model.config.get_text_config().vocab_size
    return torch.arange(3, 3 + _LENGTH, device=model.device)[None] % vocabulary  # 0 is often padding, embedded as zeros


@torch.no_grad()
def _native(model: PreTrainedModel) -> tuple[Tensor, LogitRule]:
    """Run the model as it was; return its [1, L, D] hidden states and what becomes of its head's outputs.

    The head's outputs are replaced by made-up ones from -40 to 40, so that the answer does not depend on the weights.
    """
    architecture = type(model).__name__
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ModelError(f"{architecture} has no language-model head.", "Load it with AutoModelForCausalLM.")
    read: list[Tensor] = []
    made: list[Tensor] = []
    decoded: list[Tensor] = []

    def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        read.append(args[0])
        made.append(torch.linspace(-40, 40, output.numel()).reshape(output.shape).to(output))
        return made[-1]  # the hook's answer takes the output's place

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not hasattr(output, "last_hidden_state"):
            raise ModelError(f"{architecture} does not tell its decoder from its head (get_decoder).", _OTHER)
        decoded.append(output.last_hidden_state)

    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    hooks = [head.register_forward_hook(replace), decoder.register_forward_hook(note)]
    try:
        logits = model(input_ids=_tokens(model), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(read) != 1 or len(decoded) != 1 or not torch.equal(read[0], decoded[0]):
        problem = f"{architecture} changes its decoder's last hidden states before its head reads them."
        raise ModelError(problem, "Choose an architecture with a plain head, like Qwen3 or Llama.")
    for rule in logit_rules(model.config.get_text_config()):
        if torch.equal(rule(made[0]), logits):
            return decoded[0], rule
    problem = f"{architecture} turns its head's outputs into logits in a way that AgentFlow does not know."
    raise ModelError(problem, "Choose an architecture with a plain head, like Qwen3 or Llama.")


def _check_layouts(model: PreTrainedModel, expected: Tensor) -> None:
    """Switch the model to layouts, note each layer's window, and compare with its native [1, L, D] hidden states."""
    architecture = type(model).__name__
    probe = _Probe()
    model.set_attn_implementation(_PROBE)
    with _leaf_embeddings(model) as leaves, torch.enable_grad():
        positions = torch.arange(_LENGTH, device=model.device)
        hidden = _two_copies(model, torch.cat((positions, positions)), probe)
        if sorted(probe.calls) != list(range(model.config.get_text_config().num_hidden_layers)):
            raise ModelError(f"{architecture} does not pass attention arguments on to every layer.", _OTHER)
        _check_dependence(architecture, hidden, leaves)
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        raise ModelError(f"{architecture} does not let its attention be chosen as a whole.", _OTHER)
    with torch.no_grad():
        spread = _two_copies(model, torch.cat((positions, 2 * positions)), probe)
    if torch.equal(spread[:, _LENGTH:], hidden[:, _LENGTH:]):
        raise ModelError(f"{architecture} ignores position_ids.", _OTHER)
    error = float((hidden[:, _LENGTH:].detach() - expected).float().norm() / expected.float().norm())
    if not error < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1):
        raise ModelError(
            f"{architecture} computes something else on layouts: hidden states differ by {error:.1e}.", _OTHER
        )


def _two_copies(model: PreTrainedModel, positions: Tensor, probe: _Probe) -> Tensor:
    """Run the tokens twice in one sequence, at [2L] positions; return [1, 2L, D] last hidden states."""
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    hidden: Tensor = decoder(
        input_ids=_tokens(model).repeat(1, 2), position_ids=positions[None], attention_layout=probe, use_cache=False
    ).last_hidden_state
    return hidden


@contextmanager
def _leaf_embeddings(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within, collect each call's token embeddings, cut off from the weights, as leaves of the graph."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # some models change their embeddings in place

    hook = model.get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        hook.remove()


def _check_dependence(architecture: str, hidden: Tensor, leaves: list[Tensor]) -> None:
    """Prove by gradients, which are zero or not, that a token depends on itself and on its own path alone."""
    assert len(leaves) == 1, "a decoder embeds its tokens once"
    watched = hidden[0, _LENGTH + _WATCHED].float()
    mixed = (watched * torch.linspace(1, 2, len(watched), device=watched.device)).sum()  # the plain sum of a norm is 0
    gradient = torch.autograd.grad(mixed, leaves[0])[0][0]
    depends = {index for index, row in enumerate(gradient) if bool((row != 0).any())}
    path = set(range(_LENGTH, _LENGTH + _WATCHED + 1))
    if not bool(gradient.isfinite().all()):
        raise ModelError(f"{architecture} has gradients that are no numbers.", _OTHER)
    if _LENGTH + _WATCHED not in depends or not depends <= path:
        raise ModelError(
            f"{architecture} lets tokens influence each other beside its attention (a state-space mixer, a "
            "convolution, or attention to what follows), so that trajectories in one forest would not be independent.",
            _OTHER,
        )


def _sees(length: int, window: int | None) -> Tensor:
    """Return [L, L] bool: which keys each query of a row sees."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < (window or length))


def _probe_mask(*, mask_function: Any, config: Any, local_size: int | None = None, **kwargs: Any) -> _Sight | None:
    """Stand in for the mask that transformers would build; None for the plain causal one."""
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        return _Sight(local_size, f"attends in chunks of {local_size} tokens")
    rows = torch.arange(kwargs["q_length"], device=kwargs.get("device"))
    zero = torch.zeros((), dtype=torch.long, device=rows.device)
    masked = mask_function(zero, zero, rows[:, None], rows[None, :])
    causal = _sees(len(rows), local_size).to(rows.device)
    copies = rows[:, None] // _LENGTH == rows[None, :] // _LENGTH
    if not (torch.equal(masked, causal & copies) or torch.equal(masked, causal)):
        return _Sight(local_size, "has an attention mask that is not only causal")
    return None if local_size is None else _Sight(local_size)


def _probe_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: _Sight | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Note how far a layer sees, then attend as always."""
    name = type(module).__name__
    if attention_mask is not None and not isinstance(attention_mask, _Sight):
        raise ModelError(f"{name} builds its own attention mask.", _OTHER)
    if attention_mask is not None and attention_mask.problem:
        raise ModelError(f"{name} {attention_mask.problem}.", _OTHER)
    if "attention_layout" not in kwargs:
        raise ModelError(f"{name} is not handed the attention arguments of its model's call.", _OTHER)
    window = attention_mask.window if attention_mask else None
    claimed = kwargs.get("sliding_window")
    if claimed is not None and claimed != window:
        problem = f"{name} claims a sliding window of {claimed}, and transformers' mask of the layer has {window}."
        raise ModelError(problem, "Set sliding_window to null in the model's config, if the layer has none.")
    module.agentflow_window = window  # type: ignore[assignment]
    return delegate(module, query, key, value, None, **kwargs)


AttentionInterface.register(_PROBE, _probe_attention)
AttentionMaskInterface.register(_PROBE, _probe_mask)
