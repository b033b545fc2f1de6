"""Route a transformers model's attention to a layout that is passed with each call.

    model(input_ids=[1, T], position_ids=[1, T], attention_layout=layout, use_cache=False)

Models hand unknown keyword arguments down to their attention function, so one function, registered once, serves the
learner's packed forest and the sampler's key-value caches. No attention mask is ever built: a mask exists only for
implementations that register one. How far a layer sees is read off the masks that transformers would build, once,
when a model is switched to layouts (`attention`).
"""

from typing import Any, Final, Protocol

from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from agentflow.errors import ModelError
from agentflow.scoring.rules import AttentionRule, LogitRule

IMPLEMENTATION: Final = "agentflow"
"""The name under which transformers knows this attention (`attn_implementation="agentflow"`)."""

_HARMLESS: Final = {"position_ids", "position_embeddings", "cache_position", "use_cache", "logits_to_keep"}


class AttentionLayout(Protocol):
    """Which keys each query of a batch attends to, and how that is computed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, rule: AttentionRule) -> Tensor:
        """Compute softmax(scores) value over the keys that each query may see.

        H query heads share H_kv key-value heads in consecutive blocks: query head h reads key-value head
        h // (H // H_kv). Keys and values arrive without repetition, after rotary embedding, for this call's
        tokens only: a layout that keeps a cache appends them itself, by layer.

        Args:
            query: [1, H, T, D] queries of this call's T tokens.
            key: [1, H_kv, T, D] keys of the same tokens.
            value: [1, H_kv, T, D] values of the same tokens.
            layer: The index of the calling layer, 0 at the bottom.
            rule: How far the layer's queries see, and how their products with keys become scores.

        Returns:
            [1, T, H, D] in the dtype of `query` (note the transposed axes, which is what transformers expects).
        """
        ...


def logit_rule(model: PreTrainedModel) -> LogitRule:
    """Return what a model, after `use_agentflow_attention`, does to its head's outputs; peft may surround it."""
    rule = model.agentflow_logits
    assert isinstance(rule, LogitRule), "call use_agentflow_attention(model) first"
    return rule


def delegate(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Delegate one layer's attention to the layout, and refuse what a layout cannot express."""
    layout: AttentionLayout | None = kwargs.pop("attention_layout", None)
    assert layout is not None, "the agentflow attention needs attention_layout= in the call of the model"
    assert attention_mask is None, "the agentflow attention takes no mask: the layout says who attends to whom"
    rule = AttentionRule(
        scaling=kwargs.pop("scaling", None) or query.shape[-1] ** -0.5,
        window=module.agentflow_window,  # type: ignore[arg-type]
        softcap=kwargs.pop("softcap", None),
        sinks=kwargs.pop("s_aux", None),
    )
    kwargs.pop("sliding_window", None)  # compared with the mask's window once, when the model was switched
    _refuse_unsupported(module, kwargs)
    layer = module.layer_idx
    assert isinstance(layer, int), "an attention module of transformers knows its layer_idx"
    # Under autocast, rotary embedding and norms return float32 queries and keys beside half-precision values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    width = value.shape[-1]
    if width < key.shape[-1]:  # latent attention (DeepSeek): zero features of a value come out as zeros
        value = functional.pad(value, (0, key.shape[-1] - width))
    out = layout.attend(query, key, value, layer=layer, rule=rule)[..., :width]
    return out.contiguous(), None  # some models view it in another shape


def _refuse_unsupported(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raise for any argument that would change the attention: biases, dropout, and what is not known."""
    name = type(module).__name__
    if kwargs.pop("is_causal", None) is False:
        raise ModelError(f"{name} attends in both directions.", "Choose a causal language model.")
    if kwargs.pop("dropout", 0.0):
        raise ModelError(f"{name} drops attention weights.", "Set attention_dropout to 0 in the model's config.")
    for key, value in kwargs.items():
        if value is not None and value is not False and key not in _HARMLESS:
            problem = f"{name} uses {key}, which AgentFlow's attention does not compute."
            raise ModelError(problem, "Choose a model without it, or set it to null in the model's config.")


AttentionInterface.register(IMPLEMENTATION, delegate)
