"""A run under way: everything that the training loop asks for and that is neither a value nor an algorithm."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from agentflow.alarm import DivergenceAlarm
from agentflow.batch import Batch
from agentflow.columns import START, Columns
from agentflow.environment import load_tasks
from agentflow.errors import RunAborted
from agentflow.models import ignored_losses
from agentflow.rewards import Shaper
from agentflow.roles import PLANNER
from agentflow.rollout import Collected
from agentflow.runs import Run
from agentflow.trainers.algorithm import Algorithm
from agentflow.trainers.console import Console
from agentflow.trainers.drift import Drift, DriftWatch, measure_drift
from agentflow.trainers.engines.base import Engine, Gradient, Update
from agentflow.trainers.engines.local import LocalEngine
from agentflow.trainers.journal import Journal
from agentflow.trainers.parts import Assembly
from agentflow.trainers.reporting import iteration_metrics
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.slots.base import Plan, Sampler
from agentflow.trainers.slots.records import Draw, Found, Now, Seen
from agentflow.trainers.sources import group_source
from agentflow.trainers.state import RunState


@dataclass(slots=True)
class Clock:
    """How long a block took, once it is over."""

    seconds: float = 0.0


class Session:
    """The parts of a run, and what is done with them between the steps of the loop; iterations count from 1.

    Args:
        config: The run.
        assembly: What samples.
        run: The run's folder.
        console: Where progress is shown.
    """

    def __init__(self, config: TrainConfig, assembly: Assembly, *, run: Run, console: Console) -> None:
        self.config = config
        self.algorithm: Algorithm = config.whole_algorithm
        self._assembly = assembly
        self._run = run
        self._console = console
        self._pool = load_tasks(assembly.make_environment(), "train")
        self._source = group_source(config, assembly.rollout, self._pool)
        decode = assembly.loaded.tokenizer.decode
        lags = config.run.max_staleness > 0
        self._watch = DriftWatch(run, config.mismatch, decode=lambda token: str(decode([token])), lags=lags)
        self.engine: Engine = LocalEngine(
            assembly.loaded.model,
            config.learner,
            num_updates=config.run.iterations * config.learner.updates_per_iteration,
            temperature=config.policy.temperature,
            with_reference=self.algorithm.needs_reference,
        )
        self.journal = Journal(config, assembly, engine=self.engine, run=run, console=console)

    def restored(self) -> RunState:
        """Continue from the run's latest checkpoint, or begin."""
        return self.journal.restored(RunState(slots=self.algorithm.initial()))

    @contextmanager
    def opened(self, state: RunState) -> Iterator[None]:
        """Collect groups within; say at the end what frozen models have cost."""
        for line in ignored_losses(self._assembly.loaded.model):
            self._console.note(line)
        self._source.open(state.source, self._assembly.policy.version)
        try:
            yield
        finally:
            self._source.close()
            for line in self._assembly.frozen.report():
                self._console.note(line)

    def iterations(self, done: int) -> Iterator[int]:
        """Yield the iterations that are left, until the run's time is up."""
        for iteration in range(done + 1, self.config.run.iterations + 1):
            yield iteration
            if self.journal.ended and iteration < self.config.run.iterations:
                self._console.note(f"stopped after {self.config.run.max_minutes} minutes (run.max_minutes)")
                return

    def now(self, iteration: int, state: RunState) -> Now:
        """Say where the run stands at the beginning of an iteration."""
        progress = (iteration - 1) / self.config.run.iterations
        return Now(iteration, progress, self.shaper(state).reached, self.config.run.seed)

    def shaper(self, state: RunState) -> Shaper:
        """Return the run's rewards at their place in the schedule."""
        return Shaper(self.config.rewards, state.shaping)

    def draws(self, sampler: Sampler, state: RunState, *, found: Found, number: int, now: Now) -> Sequence[Draw]:
        """Let the sampler choose the tasks of a round."""
        run = self.config.run
        want, size = run.tasks_per_iteration, run.group_size
        return sampler.draw(self._pool, state.slots, want=want, size=size, number=number, found=found, now=now)

    def play(self, draws: Sequence[Draw], plan: Plan, state: RunState, *, number: int, now: Now) -> Collected:
        """Attempt the tasks of a round."""
        plans = [(draw.task, plan.attempts(draw, state.slots.get("plan", {}), now)) for draw in draws]
        return self._source.play(
            plans,
            label=f"{now.iteration:06d}.{number}",
            progress=lambda done, total: self._console.progress(done, total, "rollout"),
        )

    def store(self, found: Found, state: RunState) -> None:
        """Write the iteration's groups; end the run at the last whole iteration if nothing can be played any more.

        Raises:
            RunAborted: A frozen model has used up its tokens.
        """
        self._run.write_groups(state.iteration + 1, [each.group for each in found.judged])
        if found.spent:
            self.journal.keep_unsaved(state)
            raise RunAborted(
                f"The run stops after {state.iteration} iterations: {found.spent} (in "
                f"{self._run.path / 'config.yaml'}) and continue with --resume."
            )

    @contextmanager
    def updating(self) -> Iterator[Clock]:
        """Change weights within; the policy samples from the new ones after it."""
        clock, started = Clock(), time.monotonic()
        with self._assembly.policy.updating():
            yield clock
            clock.seconds = time.monotonic() - started

    def drift(self, batch: Batch, gradient: Gradient, *, known: Sequence[Columns], state: RunState) -> Drift:
        """Measure how far sampler and learner are apart, before any weight has changed.

        Raises:
            RunAborted: They have drifted apart; what the iteration started from is kept.
        """
        later = [columns[START].double().cpu() for columns in known[1:]]
        learner_S = torch.cat([torch.from_numpy(gradient.start_S), *later]).numpy()
        # No weights sampled what an expert wrote: its tokens say nothing about sampler and learner.
        version = -1 if self.config.roles[PLANNER].speaks == "expert" else self._assembly.policy.version
        found = measure_drift(batch.trajectories, learner_S, version=version)
        sentence = self._watch.observe(state.iteration + 1, found)
        if sentence:
            self.journal.keep_unsaved(state)
            raise RunAborted(sentence)
        return found

    def report(self, seen: Seen, update: Update) -> dict[str, Any]:
        """Return the metrics of an iteration."""
        if not update.applied:
            self._console.note(
                f"iteration {seen.now.iteration} learned nothing: the attempts at each task all ended alike"
            )
        lags = self.config.run.max_staleness > 0
        # The weights that the updates started from: by now the policy has those after them.
        row = iteration_metrics(seen, update, version=seen.now.iteration - 1, lags=lags)
        self._source.updated(self._assembly.policy.version)
        return row | self._assembly.policy.metrics()

    def observed(self, state: RunState, seen: Seen) -> RunState:
        """Return what the run remembers after an iteration."""
        shaper, alarm = self.shaper(state), DivergenceAlarm(self.config.rewards.alarm, state.alarm)
        shaper.observe_groups([each.group for each in seen.found.judged])
        shaped = [member.shaped for member in seen.found.earned]
        rings = alarm.observe([s.shaped_return for s in shaped], [s.raw_return for s in shaped])
        return RunState(
            iteration=seen.now.iteration,
            slots=self.algorithm.observe(state.slots, seen),
            shaping=shaper.state_dict(),
            alarm={**alarm.state_dict(), "rings": rings},
            source=self._source.state(),
        )

    def log(self, iteration: int, row: Mapping[str, Any]) -> None:
        """Log an iteration's metrics; nothing is collected any more after the last one."""
        if iteration and self.journal.ends_with(iteration):
            self._source.close()
        self.journal.log(iteration, row)
