"""Route a transformers model's attention to a layout that is passed with each call.

    model(input_ids=[1, T], position_ids=[1, T], attention_layout=layout, use_cache=False)

Models hand unknown keyword arguments down to their attention function, so one function, registered once, serves the
learner's packed forest and the sampler's key-value caches. No attention mask is ever built: a mask exists only for
implementations that register one.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from agentflow.errors import ModelError

IMPLEMENTATION: Final = "agentflow"
"""The name under which transformers knows this attention (`attn_implementation="agentflow"`)."""

_HARMLESS: Final = {"position_ids", "position_embeddings", "cache_position", "use_cache", "logits_to_keep"}


class AttentionLayout(Protocol):
    """Which keys each query of a batch attends to, and how that is computed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scaling: float) -> Tensor:
        """Compute softmax(scaling * query key^T) value over the keys that each query may see.

        H query heads share H_kv key-value heads in consecutive blocks: query head h reads key-value head
        h // (H // H_kv). Keys and values arrive without repetition, after rotary embedding, for this call's
        tokens only: a layout that keeps a cache appends them itself, by layer.

        Args:
            query: [1, H, T, D] queries of this call's T tokens.
            key: [1, H_kv, T, D] keys of the same tokens.
            value: [1, H_kv, T, D] values of the same tokens.
            layer: The index of the calling layer, 0 at the bottom.
            scaling: Multiplies the scores before the softmax.

        Returns:
            [1, T, H, D] in the dtype of `query` (note the transposed axes, which is what transformers expects).
        """
        ...


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Delegate one layer's attention to the layout, and refuse what a layout cannot express."""
    layout: AttentionLayout | None = kwargs.pop("attention_layout", None)
    assert layout is not None, "the agentflow attention needs attention_layout= in the call of the model"
    assert attention_mask is None, "the agentflow attention takes no mask: the layout says who attends to whom"
    scaling = kwargs.pop("scaling", None) or query.shape[-1] ** -0.5
    _refuse_unsupported(module, kwargs)
    layer = module.layer_idx
    assert isinstance(layer, int), "an attention module of transformers knows its layer_idx"
    # Under autocast, rotary embedding and norms return float32 queries and keys beside half-precision values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    width = value.shape[-1]
    if width < key.shape[-1]:  # latent attention (DeepSeek): zero features of a value come out as zeros
        value = functional.pad(value, (0, key.shape[-1] - width))
    return layout.attend(query, key, value, layer=layer, scaling=scaling)[..., :width], None


def _refuse_unsupported(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raise for any argument that would change the attention: windows, soft caps, sinks, biases, dropout."""
    name = type(module).__name__
    if kwargs.pop("is_causal", None) is False:
        raise ModelError(f"{name} attends in both directions.", "Choose a causal language model.")
    if kwargs.pop("dropout", 0.0):
        raise ModelError(f"{name} drops attention weights.", "Set attention_dropout to 0 in the model's config.")
    for key, value in kwargs.items():
        if value is not None and value is not False and key not in _HARMLESS:
            problem = f"{name} uses {key}, which AgentFlow's attention does not compute."
            raise ModelError(problem, "Choose a model without it, or set it to null in the model's config.")


AttentionInterface.register(IMPLEMENTATION, _attention)


@dataclass(slots=True)
class _Probe:
    """A layout of two copies of a row, one after the other, that counts its calls."""

    calls: list[int] = field(default_factory=list)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scaling: float) -> Tensor:
        self.calls.append(layer)
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        halves = [
            functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
            for q, k, v in zip(query.chunk(2, 2), key.chunk(2, 2), value.chunk(2, 2), strict=True)
        ]
        return torch.cat(halves, dim=2).transpose(1, 2)


def use_agentflow_attention(model: PreTrainedModel) -> None:
    """Switch a loaded model to layouts, after a tiny forward that proves it computes the same as before.

    Args:
        model: A causal language model, its weights in memory; changed in place.

    Raises:
        ModelError: The architecture does not go through transformers' attention interface in every layer, ignores
            position ids, uses something that layouts do not compute (windows, soft caps, sinks, biases), or its
            logits are more than its head applied to its decoder's last hidden states.
    """
    if model.config._attn_implementation == IMPLEMENTATION:
        return
    architecture = type(model).__name__
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise ModelError(f"{architecture} has no language-model head.", "Load it with AutoModelForCausalLM.")
    training = model.training
    model.train(False)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(6, device=model.device)[None] % vocabulary
    probe = _Probe()
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        model.set_attn_implementation(IMPLEMENTATION)
        actual = head(_second_copy(model, tokens, probe)).float()
    model.train(training)
    if sorted(probe.calls) != list(range(model.config.get_text_config().num_hidden_layers)):
        raise ModelError(
            f"{architecture} does not pass attention arguments on to every layer.",
            "Choose an architecture built on transformers' attention interface, like Qwen3 or Llama.",
        )
    error = float((actual - expected).norm() / expected.norm())
    if not error < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1):
        raise ModelError(
            f"{architecture} scales its logits or ignores position_ids: packed logits differ by {error:.1e}.",
            "Choose an architecture with a plain head and position_ids, like Qwen3 or Llama.",
        )


def _second_copy(model: PreTrainedModel, tokens: Tensor, probe: _Probe) -> Tensor:
    """Run [1, L] tokens twice in one sequence; return the second copy's [1, L, hidden] last hidden states."""
    length = tokens.shape[1]
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    hidden: Tensor = decoder(
        input_ids=tokens.repeat(1, 2),
        position_ids=torch.arange(length, device=tokens.device)[None].repeat(1, 2),
        attention_layout=probe,
        use_cache=False,
    ).last_hidden_state
    return hidden[:, length:]
