"""How long a path may be: models whose rotary factors depend on the longest position of a call are held below it.

`longrope` (Phi-3, Phi-4) and `dynamic` turn every token of a call by other angles as soon as one of them lies beyond
the length of the first training. In a forest or a batch, a long trajectory would change the short ones; so nothing
beyond that length is computed.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from agentflow.errors import ModelError


def max_positions(model: PreTrainedModel) -> int:
    """Return the most tokens that one path of a model may have."""
    config: Any = model.config.get_text_config()
    limits = [limit for module in model.modules() if (limit := _limit(module)) is not None]
    return min([int(config.max_position_embeddings), *limits])


def limit_positions(model: PreTrainedModel) -> None:
    """Make a model refuse positions whose presence would change the other tokens of the call."""
    for module in model.modules():
        limit = _limit(module)
        if limit is not None:
            module.register_forward_pre_hook(partial(_refuse_beyond, limit), with_kwargs=True)


def _limit(module: nn.Module) -> int | None:
    """Return the tokens up to which a rotary embedding is a function of the position alone; None for any number."""
    found = getattr(module, "rope_type", None)
    types = found.items() if isinstance(found, dict) else [(None, found)]
    limits = [limit for layer_type, kind in types if (limit := _limit_of(module, layer_type, kind)) is not None]
    return min(limits, default=None)


def _limit_of(module: Any, layer_type: str | None, kind: Any) -> int | None:
    if not isinstance(kind, str) or not ("dynamic" in kind or kind == "longrope"):
        return None
    if kind == "longrope":
        parameters = module.config.rope_parameters
        parameters = parameters if layer_type is None else parameters[layer_type]
        return int(parameters["original_max_position_embeddings"])
    return int(module.original_max_seq_len)


def _refuse_beyond(limit: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    positions: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    longest = int(positions.max()) + 1
    if longest > limit:
        raise ModelError(
            f"A sequence of {longest} tokens is longer than the {limit} up to which this model's rotary embedding "
            "treats each sequence alone (rope_type longrope or dynamic).",
            f"Set agent.max_episode_tokens to at most {limit}, or choose a model with rope_type yarn.",
        )
