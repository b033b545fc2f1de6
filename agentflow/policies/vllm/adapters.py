"""What servers are sent of a model with LoRA adapters: its base once, and the adapter at each update."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

_NAME = "default"  # peft's, of the adapter that is trained
_PREFIX = "base_model.model."  # of the names in peft's files


def base_of(model: Any) -> PreTrainedModel:
    """Return the model that peft put adapters into; one without, or that transformers put them into, as it is."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def rank_of(model: Any) -> int:
    """Return the rank of a model's adapters; 0 if it has none."""
    rank: int = model.peft_config[_NAME].r if hasattr(model, "peft_config") else 0
    return rank


def base_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return all weights but the adapters', as a checkpoint of the base model names them."""
    named = base_of(model).named_parameters()
    return {name.replace(".base_layer.", "."): weight for name, weight in named if ".lora_" not in name}


def adapter_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the adapter's matrices as servers compute with them, by their names in peft's files.

    The scale `alpha / rank` is in B already, before it is rounded to the dtype of the base.
    """
    found = {}
    base: Any = base_of(model)  # to type checkers, a module's attributes are tensors or modules
    for name, module in base.named_modules():
        if hasattr(module, "lora_A") and _NAME in module.lora_A:
            a, b = module.lora_A[_NAME].weight, module.lora_B[_NAME].weight
            found[f"{_PREFIX}{name}.lora_A.weight"] = a.detach().to(model.dtype)
            found[f"{_PREFIX}{name}.lora_B.weight"] = (b.detach() * module.scaling[_NAME]).to(model.dtype)
    return found


def adapted_modules(model: Any) -> list[str]:
    """Return the names of the layers that have adapters, without the path to them; empty for a model without."""
    modules = model.peft_config[_NAME].target_modules if rank_of(model) else ()
    return sorted({name.rpartition(".")[2] for name in modules})


def adapter_config(model: Any) -> dict[str, Any]:
    """Return the `adapter_config.json` of `adapter_weights`."""
    rank = rank_of(model)
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": adapted_modules(model)}
