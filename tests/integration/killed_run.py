"""Train in a process that kills itself: python killed_run.py MODEL OUT PHASE LORA_RANK [RUN]. PHASE `none` lives."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agentflow.trainers import start
from agentflow.trainers.algorithm import load_recipe
from agentflow.trainers.settings import TrainConfig


def die() -> None:
    """Leave as a machine that loses power does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """A console that ends the process in the middle of a rollout."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._iteration = 0

    def started(self, path: Path) -> None:
        """Say nothing."""

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """Remember how far the run is."""
        self._iteration = metrics["iteration"]

    def progress(self, done: int, total: int, phase: str) -> None:
        """Die half-way through the fourth iteration's episodes."""
        if self._phase == "rollout" and phase == "rollout" and self._iteration == 3 and done == total // 2:
            die()

    def note(self, text: str) -> None:
        """Say nothing."""


def die_in_update(after: int) -> None:
    """Die in a backward pass."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            die()

    torch.nn.modules.module.register_module_full_backward_hook(count)


def die_in_checkpoint() -> None:
    """Die in the second checkpoint, between the optimiser's state and the rest."""
    calls = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal calls
        if event == "open" and str(args[0]).endswith("state.json") and "w" in str(args[1]):
            calls += 1
            if calls == 2:
                die()

    sys.addaudithook(count)


def main(model: str, out: str, phase: str, lora_rank: str, run: str = "") -> None:
    """Train or resume."""
    torch.set_num_threads(1)
    if phase == "update":
        die_in_update(after=60)
    if phase == "checkpoint":
        die_in_checkpoint()
    console = Killer(phase)
    if run:
        print(start.resume(Path(run), console))
        return
    config = TrainConfig(
        env={"name": f"{Path(__file__).parent / 'words.py'}:Words"},
        model={"path": model} | ({"lora_rank": int(lora_rank), "lora_alpha": 8} if int(lora_rank) else {}),
        agent={"max_turn_tokens": 12},
        learner={"learning_rate": 3e-3, "updates_per_iteration": 2, "schedule": "linear"},
        rewards={"preset": "outcome", "terms": {"well_formed": {"weight": 0.2, "retire_at": 0.5, "fade": 0.5}}},
        algorithm=load_recipe(
            "flow-grpo", {"loss": {"kl": {"coefficient": 0.01}}, "keep": {"has_signal": {"drop": False}}}
        ),
        evaluation={"every": 3, "num_tasks": 8},
        run={"iterations": 6, "tasks_per_iteration": 4, "group_size": 4, "checkpoint_every": 2, "out": out},
    )
    print(start.train(config, console))


if __name__ == "__main__":
    main(*sys.argv[1:])
