"""Load a policy's model and tokenizer from a folder, a run, a hub id, or a starter policy that ships with AgentFlow."""

import copy
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from pydantic import Field, field_validator
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agentflow.config import Config
from agentflow.errors import ModelError
from agentflow.roles import PLANNER
from agentflow.runs import StoredRun
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.starter_policies import REACT, STARTER, Part, recommended, starter_folders, starter_for


class ModelConfig(Config):
    """Which model is trained, and how it is held in memory."""

    path: str = Field(
        STARTER,
        description="A model folder, a run (its latest checkpoint), a hub id, or `starter`: the one that knows the "
        "environment.",
    )
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`, ..., or `auto` for a GPU where there is one.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Dtype of the weights; `auto` is bfloat16 on a GPU that has it, float32 elsewhere."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    lora_rank: int = Field(0, ge=0, description="Rank of LoRA adapters on all linear layers; 0 trains all weights.")
    lora_alpha: int = Field(32, gt=0, description="Scale of the LoRA adapters (applied as alpha / rank).")

    @field_validator("path")
    @classmethod
    def _from_a_run(cls, path: str) -> str:
        """Keep which checkpoint a run stood for, so that a run that is continued starts from the same weights."""
        return checkpoint_of(path)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to sample and to learn.

    Attributes:
        model: The causal language model; with LoRA, the peft model around it.
        tokenizer: Its tokenizer, with a chat template.
        name: A short name for folders and tables; for a checkpoint, the name of its run.
        recommended: What it recommends for its own training; every checkpoint of it carries that on.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    recommended: Mapping[str, Any] = field(default_factory=dict)


def checkpoint_of(path: str) -> str:
    """Return the latest checkpoint of a run for the run's folder; any other model as it is.

    Raises:
        ModelError: The run has no checkpoint yet.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file() or (folder / "config.json").is_file():
        return path
    checkpoint = StoredRun(folder).latest_checkpoint()
    if checkpoint is None:
        resume = f"agentflow train --resume {shlex.quote(path)}"
        raise ModelError(f"The run {path!r} has no checkpoint yet.", f"Continue it: {resume}")
    return str(checkpoint.path.absolute())


def training_defaults(path: str, *, env: str = "", agent: str = REACT) -> dict[str, Any]:
    """Read what a model folder recommends for its own training, from its `agentflow.yaml`.

    The file has the shape of a run's configuration and stands below every file and word of the user.

    Args:
        path: A model folder, a run, a hub id, or a starter policy; only folders can recommend anything.
        env: The environment, by which `starter` is understood.
        agent: The agent, likewise.

    Raises:
        ConfigError: The file is no YAML mapping.
        ModelError: The run has no checkpoint yet.
    """
    return recommended(folder_of(checkpoint_of(path), Part(env=env, agent=agent)))


def folder_of(path: str, part: Part) -> Path:
    """Return the folder of a model, where it is one: that of a starter policy where it names one or stands for one."""
    name = starter_for(path, part)
    return starter_folders().get(name, Path(name))


def load_model(config: ModelConfig, *, env: str = "", agent: str = REACT, role: str = PLANNER) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        config: Which model.
        env: The environment, by which `starter` is understood, as by the next two.
        agent: The agent that plays.
        role: The model's role in it.

    Raises:
        ModelError: The folder is missing or incomplete, the hub cannot be reached, or the device is not there.
    """
    part = Part(env=env, agent=agent, role=role)
    name = starter_for(config.path, part)
    path = str(folder_of(name, part))
    device = _device(config.device)
    dtype = _dtype(config.dtype, device)
    if not Path(path).is_dir():
        _check_hub(path)
    elif not any((Path(path) / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ModelError(f"The folder {config.path!r} holds no model: it has no config.json.", _WANTED)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    # Damaged weights are a SafetensorError, weights of another shape a RuntimeError.
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:_MAX_SAID_CHARACTERS]
        raise ModelError(f"Cannot load the model {config.path!r}: {said}", _WANTED) from error
    model.to(device)
    use_agentflow_attention(model)
    if config.gradient_checkpointing:
        _checkpoint_gradients(model)
    if config.lora_rank:
        model = _with_lora(model, config)
    return LoadedModel(model, tokenizer, _short_name(Path(name)), recommended(Path(path)))


_WANTED = "Give a folder with config.json, weights and tokenizer, a run, a hub id that can be reached, or `starter`."
_MAX_SAID_CHARACTERS = 300


def _short_name(path: Path) -> str:
    run = path.parent.parent
    return run.name if path.parent.name == "checkpoints" and (run / "config.yaml").is_file() else path.name


def _check_hub(name: str) -> None:
    """Refuse at once what is neither a folder nor a model of the hub; transformers would try for a minute."""
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        problem = "is not a folder" if Path(name).exists() else "does not exist"
        raise ModelError(f"The model {name!r} {problem}.", _WANTED)
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"There is no folder {name!r} here, and no such model on the hub, or it is private.", _WANTED
        ) from None
    except Exception as error:
        raise ModelError(
            f"There is no folder {name!r} here, and the hub cannot be asked: {type(error).__name__}: {error}.", _WANTED
        ) from error


def _checkpoint_gradients(model: Any) -> None:
    """Recompute activations layer by layer, without the dropout of the training mode that transformers asks for."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # this module alone: its children stay in evaluation mode


_AUXILIARY = ("router_aux_loss_coef", "aux_loss_coef", "router_z_loss_coef", "z_loss_coefficient")


def ignored_losses(model: PreTrainedModel) -> tuple[str, ...]:
    """Say which losses of a model's own config training does not add: those that balance the routers of its experts."""
    config = model.config.get_text_config()
    found = {name: value for name in _AUXILIARY if (value := getattr(config, name, None))}
    return tuple(
        f"{type(model).__name__} has experts whose routers its config would balance by a loss of its own "
        f"({name} = {value}): it is not added here, the algorithm's loss trains the routers alone."
        for name, value in found.items()
    )


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model as the frozen reference of a KL penalty."""
    reference = copy.deepcopy(model)
    reference.requires_grad_(False)
    reference.train(False)
    return reference


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"model.device = {name!r} is no device.", "Use auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"model.device = {name!r}, but torch sees no GPU.", "Use model.device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"model.device = {name!r}, but torch sees {torch.cuda.device_count()} GPUs.", "Use cuda:0.")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _with_lora(model: Any, config: ModelConfig) -> Any:
    # peft takes a second to import and is needed for LoRA only.
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
