"""The optimiser: AdamW over float32 weights, its schedule, clipping, and the guard against broken gradients."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentflow.errors import RunAborted
from agentflow.trainers.engines.base import Applied, LearnerConfig

_MAX_SKIPPED_IN_A_ROW = 5


class Optimiser:
    """Change the weights of a model by the gradients that its parameters hold.

    Args:
        model: Updated in place; parameters that require no gradient are left alone.
        config: The optimiser.
        num_updates: Updates of the whole run, for the schedule.
    """

    def __init__(self, model: PreTrainedModel, config: LearnerConfig, *, num_updates: int) -> None:
        self.num_updates_done = 0
        self._config = config
        self._num_updates = num_updates
        self._num_skipped_in_a_row = 0
        self._weights = _MasterWeights(model)
        self._adamw = torch.optim.AdamW(
            self._weights.parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )

    def take_gradients(self) -> None:
        """Take over the gradients of a backward pass."""
        self._weights.take_gradients()

    def apply(self) -> Applied:
        """Clip the gradient and take one step; see `Engine.apply`."""
        norm = torch.nn.utils.clip_grad_norm_(self._weights.parameters, self._config.max_grad_norm).item()
        rate = learning_rate(self.num_updates_done, self._config, num_updates=self._num_updates)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        # A gradient that is not finite would destroy the weights; the update is counted and left out.
        if math.isfinite(norm):
            self._adamw.step()
            self._weights.publish()
        self._adamw.zero_grad(set_to_none=True)
        self.num_updates_done += 1
        self._num_skipped_in_a_row = 0 if math.isfinite(norm) else self._num_skipped_in_a_row + 1
        if self._num_skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise RunAborted(
                f"The gradient was not finite in {_MAX_SKIPPED_IN_A_ROW} updates in a row; none of them changed the "
                "weights. Lower learner.learning_rate, or use model.dtype=float32."
            )
        return Applied(norm, rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the number of updates."""
        return {
            "optimizer": self._adamw.state_dict(),
            "master_weights": self._weights.state(),
            "num_updates_done": self.num_updates_done,
            "num_skipped_in_a_row": self._num_skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._adamw.load_state_dict(state["optimizer"])
        self._weights.restore(state["master_weights"])
        self.num_updates_done = state["num_updates_done"]
        self._num_skipped_in_a_row = state["num_skipped_in_a_row"]


def learning_rate(update: int, config: LearnerConfig, *, num_updates: int) -> float:
    """Return the learning rate of an update, counted from 0.

    Args:
        update: Updates that were made before it.
        config: Peak, warm-up and schedule.
        num_updates: Updates of the whole run.
    """
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    done = (update - config.warmup_updates) / max(1, num_updates - config.warmup_updates)
    falling: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda x: 1.0 - x,
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    }
    return config.learning_rate * falling[config.schedule](min(1.0, done))


class _MasterWeights:
    """What the optimiser updates: the model's own parameters, or float32 copies of those that are coarser.

    In bfloat16 a step of 1e-6 is lost in the rounding of any weight above 1e-3.

    Args:
        model: The model; parameters that require no gradient are left alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameters = [p if p.dtype == torch.float32 else p.detach().float() for p in self._own]
        self._pairs = [(p, master) for p, master in zip(self._own, self.parameters, strict=True) if p is not master]

    def take_gradients(self) -> None:
        """Add the gradients of a backward pass to those of the copies."""
        for parameter, master in self._pairs:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the copies into the model."""
        for parameter, master in self._pairs:
            parameter.copy_(master)

    def state(self) -> list[Tensor]:
        """Return the copies."""
        return [master for _, master in self._pairs]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Put copies back that `state` returned."""
        for (_, master), stored in zip(self._pairs, state, strict=True):
            master.copy_(stored)
