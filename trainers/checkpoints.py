"""What a checkpoint holds, and how a run continues from it.

iteration_000012/
    config.json, *.safetensors, tokenizer*   the model in Hugging Face format (with LoRA, the adapter)
    agentflow.yaml                           what it recommends for its training, if it recommends anything
    trainer.pt                               the optimiser (tensors and numbers only; read without pickle's powers)
    state.json                               what the run remembers: see `trainers.state.RunState`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from agentflow.errors import DataError
from agentflow.models import LoadedModel
from agentflow.runs import Run
from agentflow.starter_policies import RECOMMENDED
from agentflow.trainers.engines.base import Engine


def save_checkpoint(
    run: Run, iteration: int, *, loaded: LoadedModel, engine: Engine, state: Mapping[str, Any], keep: int
) -> None:
    """Write a checkpoint, all or nothing.

    Args:
        run: The run.
        iteration: The iteration after which the state is taken.
        loaded: The model and its tokenizer.
        engine: The optimiser.
        state: Everything else, as JSON values.
        keep: The number of newest checkpoints that stay.

    Raises:
        StorageError: The disk is full; earlier checkpoints are untouched.
    """
    with run.checkpoint(iteration, keep=keep) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        if loaded.recommended:
            (folder / RECOMMENDED).write_text(yaml.safe_dump(dict(loaded.recommended), sort_keys=False))
        torch.save({**engine.state_dict(), "torch_rng": torch.get_rng_state()}, folder / "trainer.pt")
        (folder / "state.json").write_text(json.dumps(state))


def load_checkpoint(folder: Path, *, loaded: LoadedModel, engine: Engine) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser state back.

    Args:
        folder: The checkpoint's folder.
        loaded: The model that takes the weights.
        engine: The optimiser that takes its state.

    Returns:
        The rest of the state.

    Raises:
        DataError: The checkpoint does not belong to this model.
    """
    try:
        _load_weights(folder, loaded)
        trainer = torch.load(folder / "trainer.pt", map_location=loaded.model.device, weights_only=True)
        engine.load_state_dict(trainer)
        torch.set_rng_state(trainer["torch_rng"].cpu())
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except Exception as error:  # damaged files raise errors of json, safetensors, zip files and torch
        raise DataError(f"{folder} is not a checkpoint of this run: {error}.", "Resume another run.") from error
    return state


def _load_weights(folder: Path, loaded: LoadedModel) -> None:
    model: Any = loaded.model
    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict  # noqa: PLC0415  peft takes a second to import

        # What is trained is the adapter: all of it must be there, and nothing else.
        result: Any = set_peft_model_state_dict(model, load_file(adapter))
        lost = [name for name in result.missing_keys if "lora_" in name]
        if lost or result.unexpected_keys:
            raise ValueError(f"its adapter and the model's differ in {[*lost, *result.unexpected_keys][:3]}")
        return
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # A tied weight is stored once, under one of its names.
    stored = {parameter.data_ptr() for name, parameter in model.state_dict().items() if name in weights}
    lost = [name for name in missing if model.state_dict()[name].data_ptr() not in stored]
    if lost or unexpected:
        raise ValueError(f"its weights and the model's differ in {[*lost, *unexpected][:3]}")
