"""What is written of a run under way: metrics, evaluations, checkpoints."""

import time
from collections.abc import Mapping
from typing import Any

from agentflow.errors import RunAborted
from agentflow.runs import Run
from agentflow.trainers.checkpoints import load_checkpoint, save_checkpoint
from agentflow.trainers.console import Console
from agentflow.trainers.engines.base import Engine
from agentflow.trainers.evaluate import evaluate, heldout_metrics
from agentflow.trainers.parts import Assembly
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.state import RunState


class Journal:
    """Writes a run's folder as the run goes on, and reads it back where it goes on from.

    Args:
        config: The run.
        assembly: What samples.
        engine: What holds the weights.
        run: The run's folder.
        console: Where progress is shown.
    """

    def __init__(self, config: TrainConfig, assembly: Assembly, *, engine: Engine, run: Run, console: Console) -> None:
        self._config = config
        self._assembly = assembly
        self._engine = engine
        self._run = run
        self._console = console
        self._started = time.monotonic()
        self.ended = False
        """Whether the iteration under way is the last."""

    def restored(self, begun: RunState) -> RunState:
        """Continue from the run's latest checkpoint; without one, from the state that a run begins with."""
        checkpoint = self._run.latest_checkpoint()
        if checkpoint is None:
            return begun
        stored = load_checkpoint(checkpoint.path, loaded=self._assembly.loaded, engine=self._engine)
        self._assembly.policy.version = checkpoint.iteration
        return RunState.from_json(stored)

    def log(self, iteration: int, row: Mapping[str, Any]) -> None:
        """Log an iteration's metrics, those of an evaluation among them where one is due.

        The row of iteration 0 holds the evaluation of the policy that the run starts from.
        """
        every = self._config.evaluation.every
        due = self.ended or not iteration or (every and iteration % every == 0)
        metrics = {"iteration": iteration, **row, **(self._evaluated() if due else {})}
        metrics |= self._assembly.frozen.metrics()
        self._run.log(metrics)
        self._console.iteration(metrics)

    def keep(self, state: RunState) -> None:
        """Write a checkpoint where one is due, and heed the alarm.

        Raises:
            RunAborted: The alarm rang and is armed.
        """
        if self.ended or state.iteration % self._config.run.checkpoint_every == 0:
            self._checkpoint(state)
        alarm = state.alarm.get("rings", "")
        if alarm:
            self._console.note(alarm)
            if self._config.rewards.alarm.stop:
                raise RunAborted(alarm)

    def keep_unsaved(self, state: RunState) -> None:
        """Keep what an iteration started from; the first one started from what the configuration says."""
        latest = self._run.latest_checkpoint()
        if state.iteration > (latest.iteration if latest else 0):
            self._checkpoint(state)

    def ends_with(self, iteration: int) -> bool:
        """Decide, once for each iteration, whether it is the last: by number, or because the run's time is up."""
        limit = self._config.run.max_minutes
        out_of_time = limit is not None and time.monotonic() - self._started > 60 * limit
        self.ended = iteration == self._config.run.iterations or out_of_time
        return self.ended

    def _evaluated(self) -> dict[str, Any]:
        config = self._config.evaluation
        if not config.num_tasks:
            return {}
        found, _ = evaluate(
            self._assembly,
            num_tasks=config.num_tasks,
            seed=self._config.run.seed,
            label="evaluation",
            progress=lambda done, total: self._console.progress(done, total, "evaluation"),
        )
        self._assembly.policy.forget()
        return heldout_metrics(found)

    def _checkpoint(self, state: RunState) -> None:
        keep = self._config.run.keep_checkpoints
        loaded = self._assembly.loaded
        save_checkpoint(
            self._run, state.iteration, loaded=loaded, engine=self._engine, state=state.to_json(), keep=keep
        )
