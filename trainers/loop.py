"""The training loop: collect, shape, compare within groups, update, store.

Every random draw is a function of the run's seed and of the iteration, and all other state is in the checkpoint, so
a run that was killed at any moment and resumed is the run that was not.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentflow.alarm import DivergenceAlarm
from agentflow.config import validate_options
from agentflow.environment import load_tasks
from agentflow.errors import RunAborted
from agentflow.models import ignored_losses
from agentflow.rewards import ShapedTrajectory, Shaper, reward_metrics
from agentflow.rollout import Collected, derive_seed
from agentflow.runs import Run
from agentflow.trainers.agent_card import agent_card
from agentflow.trainers.algorithm import advantages, degenerate_cause
from agentflow.trainers.checkpoints import load_checkpoint, save_checkpoint
from agentflow.trainers.console import Console
from agentflow.trainers.drift import Drift, DriftWatch
from agentflow.trainers.evaluate import evaluate
from agentflow.trainers.learner import Learner, Sample, UpdateStats
from agentflow.trainers.parts import Assembly, assemble
from agentflow.trainers.reporting import (
    group_metrics,
    rollout_metrics,
    scored_trajectory,
    shuffled_rewards,
    staleness_metrics,
    update_metrics,
)
from agentflow.trainers.samplers import EpochSampler
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.sources import group_source
from agentflow.trajectory import Group, Trajectory


@dataclass(frozen=True, slots=True)
class _Batch:
    """One iteration's trajectories after shaping and the choice of groups.

    Attributes:
        groups: Every group that was rolled out, dropped ones included.
        kept: The groups that are learned from, as shaped trajectories with what they shape.
        shaped: The shaped rewards of every scored trajectory.
        causes: For every group, why it teaches nothing; empty where it teaches something.
        num_retried: Episodes that failed at first.
        num_unpunctual: Decoding steps that went ahead without an episode still at work.
        num_stale: Groups that were given up because the weights had moved on.
        duration_s: Wall seconds of the rollouts.
        spent: Why the run cannot go on, where a frozen model has used up its tokens; empty otherwise.
    """

    groups: tuple[Group, ...] = ()
    kept: tuple[tuple[tuple[Trajectory, ShapedTrajectory], ...], ...] = ()
    shaped: tuple[ShapedTrajectory, ...] = ()
    causes: tuple[str, ...] = ()
    num_retried: int = 0
    num_unpunctual: int = 0
    num_stale: int = 0
    duration_s: float = 0.0
    spent: str = ""


class Trainer:
    """A run under way: the loop, and the state that a checkpoint holds.

    Iterations count from 1; the row of iteration 0 holds the evaluation of the policy that the run starts from.

    Args:
        config: The run.
        assembly: What samples.
        run: The run's folder.
        console: Where progress is shown.
    """

    def __init__(self, config: TrainConfig, assembly: Assembly, *, run: Run, console: Console) -> None:
        self.config = config
        self._assembly = assembly
        self._run = run
        self._console = console
        sampler = EpochSampler(load_tasks(assembly.make_environment(), "train"), config.run.seed)
        self._source = group_source(config, assembly.rollout, sampler)
        self._shaper = Shaper(config.rewards)
        self._alarm = DivergenceAlarm(config.rewards.alarm)
        self._watch = DriftWatch(
            run,
            config.mismatch,
            decode=lambda token: str(assembly.loaded.tokenizer.decode([token])),
            lags=config.run.max_staleness > 0,
        )
        self._learner = Learner(
            self._assembly.loaded.model,
            config.learner,
            num_updates=config.run.iterations * config.learner.updates_per_iteration,
            temperature=config.policy.temperature,
            with_reference=config.algorithm.needs_reference,
        )
        self._num_done = 0

    def restore(self) -> None:
        """Continue from the run's latest checkpoint, if it has one."""
        checkpoint = self._run.latest_checkpoint()
        if checkpoint is None:
            return
        state = load_checkpoint(checkpoint.path, loaded=self._assembly.loaded, learner=self._learner)
        self._source.load_state_dict(state["sampler"])
        self._shaper.load_state_dict(state["shaper"])
        self._alarm.load_state_dict(state["alarm"])
        self._num_done = checkpoint.iteration
        self._assembly.policy.version = checkpoint.iteration

    def train(self) -> None:
        """Run every iteration that is left.

        Raises:
            RunAborted: Too many episodes failed, an armed alarm rang, or a frozen model has used up its tokens.
            StorageError: The disk is full; the latest checkpoint stands.
        """
        for line in ignored_losses(self._assembly.loaded.model):
            self._console.note(line)
        try:
            self._train()
        finally:
            for line in self._assembly.frozen.report():
                self._console.note(line)

    def _train(self) -> None:
        if self._num_done == 0:
            self._log({"iteration": 0, **self._evaluate(0)})
        self._source.start(self._assembly.policy.version)
        try:
            self._run_iterations()
        finally:
            self._source.close()

    def _run_iterations(self) -> None:
        config = self.config.run
        started = time.monotonic()
        while self._num_done < config.iterations:
            iteration = self._num_done + 1
            metrics, alarm = self._iterate(iteration)
            self._num_done = iteration
            out_of_time = config.max_minutes is not None and time.monotonic() - started > 60 * config.max_minutes
            last = iteration == config.iterations or out_of_time
            every = self.config.evaluation.every
            if last:
                self._source.close()
            if last or (every and iteration % every == 0):
                metrics |= self._evaluate(iteration)
            self._log(metrics)
            if last or iteration % config.checkpoint_every == 0:
                self._checkpoint(iteration, self._state())
            self._heed(alarm)
            if out_of_time:
                self._console.note(f"stopped after {config.max_minutes} minutes (run.max_minutes)")
                break

    def _iterate(self, iteration: int) -> tuple[dict[str, Any], str]:
        """Collect and learn once; the metrics, and the alarm's sentence if it rings."""
        progress = (iteration - 1) / self.config.run.iterations
        before = self._state()
        batch = self._collect(iteration, progress)
        self._run.write_groups(iteration, batch.groups)
        if batch.spent:
            self._stop(before, batch.spent)
        samples = self._samples(batch, iteration)
        version = self._assembly.policy.version
        started = time.monotonic()
        with self._assembly.policy.updating():
            stats = self._update(iteration, samples, before) if samples else None
        update_s = time.monotonic() - started
        # Groups that were collected meanwhile took the update's time as well.
        sampling_s = batch.duration_s + (update_s if self.config.run.max_staleness else 0.0)
        self._source.updated(self._assembly.policy.version)
        scored = [trajectory for group in batch.groups for trajectory in group.scored]
        if scored:
            self._shaper.observe(sum(bool(t.success) for t in scored) / len(scored))
        alarm = self._alarm.observe([s.shaped_return for s in batch.shaped], [s.raw_return for s in batch.shaped])
        metrics = {"iteration": iteration, **rollout_metrics(batch.groups), **reward_metrics(batch.shaped)}
        metrics |= group_metrics(batch.causes, num_kept=len(batch.kept))
        metrics |= update_metrics(stats)
        metrics |= self._assembly.policy.metrics()
        metrics |= staleness_metrics(batch.groups, version=version, num_dropped=batch.num_stale)
        if stats is None:
            self._console.note(f"iteration {iteration} learned nothing: the attempts at each task all ended alike")
        metrics |= {
            "rollout/retried": batch.num_retried,
            "rollout/unpunctual": batch.num_unpunctual,
            "alarm": int(bool(alarm)),
            "time/rollout_s": batch.duration_s,
            "time/update_s": update_s,
            "time/sampled_tokens_per_s": metrics["tokens/sampled"] / sampling_s,
        }
        return metrics, alarm

    def _update(self, iteration: int, samples: list[Sample], before: dict[str, Any]) -> UpdateStats:
        """Learn once; where sampler and learner have drifted apart, keep the state from before and end the run."""

        def heed(drift: Drift) -> None:
            sentence = self._watch.observe(iteration, drift)
            if sentence:
                self._checkpoint_before(iteration, before)
                raise RunAborted(sentence)

        # No weights sampled what an expert wrote: its tokens say nothing about sampler and learner.
        version = -1 if self.config.policy.backend == "scripted" else self._assembly.policy.version
        return self._learner.update(samples, self.config.algorithm, version=version, heed=heed)

    def _checkpoint_before(self, iteration: int, state: dict[str, Any]) -> None:
        """Keep what the iteration started from; the first one started from what the configuration says."""
        latest = self._run.latest_checkpoint()
        if iteration > 1 and (latest is None or latest.iteration < iteration - 1):
            self._checkpoint(iteration - 1, state)

    def _collect(self, iteration: int, progress: float) -> _Batch:
        """Roll groups out until enough of them teach something, or the refills are used up."""
        config, algorithm = self.config.run, self.config.algorithm
        rounds = 1 + (algorithm.max_refills if algorithm.degenerate == "drop" else 0)
        batch = _Batch()
        for number in range(rounds):
            missing = config.tasks_per_iteration - len(batch.kept)
            if missing == 0 or batch.spent:
                break
            collected = self._source.draw(
                missing,
                label=f"{iteration:06d}.{number}",
                progress=lambda done, total: self._console.progress(done, total, "rollout"),
            )
            batch = self._add(batch, collected, progress)
        return batch

    def _add(self, batch: _Batch, collected: Collected, progress: float) -> _Batch:
        kept, shaped, causes = list(batch.kept), list(batch.shaped), list(batch.causes)
        for group in collected.groups:
            # An episode that a limit ended before its first turn has nothing to learn from.
            pairs = [(t, self._shaper.shape(t, progress)) for t in group.scored if t.turns]
            scored = tuple((trajectory, rewards) for trajectory, rewards in pairs if rewards is not None)
            shaped += [rewards for _, rewards in scored]
            cause = degenerate_cause([scored_trajectory(*pair) for pair in scored], self.config.algorithm)
            causes.append(cause)
            if not cause or self.config.algorithm.degenerate == "keep":
                kept.append(scored)
        return _Batch(
            groups=batch.groups + collected.groups,
            kept=tuple(kept),
            shaped=tuple(shaped),
            causes=tuple(causes),
            num_retried=batch.num_retried + collected.num_retried,
            num_unpunctual=batch.num_unpunctual + collected.num_unpunctual,
            num_stale=batch.num_stale + collected.num_stale,
            duration_s=batch.duration_s + collected.duration_s,
            spent=collected.spent,
        )

    def _samples(self, batch: _Batch, iteration: int) -> list[Sample]:
        """Give each kept trajectory its advantages; for the control, after its group's rewards were shuffled."""
        groups = [[scored_trajectory(*pair) for pair in group] for group in batch.kept]
        if self.config.run.shuffle_rewards:
            rng = random.Random(derive_seed(self.config.run.seed, "shuffle", iteration))  # noqa: S311  reproducible
            groups = [shuffled_rewards(group, rng) for group in groups]
        advantages_N = advantages(groups, self.config.algorithm)
        trajectories = [trajectory for group in batch.kept for trajectory, _ in group]
        return [Sample(t, advantages_K) for t, advantages_K in zip(trajectories, advantages_N, strict=True)]

    def _evaluate(self, iteration: int) -> dict[str, Any]:
        config = self.config.evaluation
        if not config.num_tasks:
            return {}
        found, _ = evaluate(
            self._assembly,
            num_tasks=config.num_tasks,
            seed=self.config.run.seed,
            label="evaluation",
            progress=lambda done, total: self._console.progress(done, total, "evaluation"),
        )
        self._assembly.policy.forget()
        low, high = found.interval or (None, None)
        return {
            "heldout/success": found.success,
            "heldout/success_low": low,
            "heldout/success_high": high,
            "heldout/turns": found.turns,
            "time/evaluation_s": found.duration_s,
        }

    def _log(self, metrics: dict[str, Any]) -> None:
        metrics |= self._assembly.frozen.metrics()
        self._run.log(metrics)
        self._console.iteration(metrics)

    def _state(self) -> dict[str, Any]:
        return {
            "sampler": self._source.state_dict(),
            "shaper": self._shaper.state_dict(),
            "alarm": self._alarm.state_dict(),
        }

    def _stop(self, before: dict[str, Any], spent: str) -> None:
        """End the run at the last whole iteration, from which it can be resumed with a larger budget."""
        latest = self._run.latest_checkpoint()
        if self._num_done > (latest.iteration if latest else 0):
            self._checkpoint(self._num_done, before)
        raise RunAborted(
            f"The run stops after {self._num_done} iterations: {spent} (in {self._run.path / 'config.yaml'}) and "
            "continue with --resume."
        )

    def _checkpoint(self, iteration: int, state: dict[str, Any]) -> None:
        save_checkpoint(
            self._run,
            iteration,
            loaded=self._assembly.loaded,
            learner=self._learner,
            state=state,
            keep=self.config.run.keep_checkpoints,
        )

    def _heed(self, alarm: str) -> None:
        if alarm:
            self._console.note(alarm)
            if self.config.rewards.alarm.stop:
                raise RunAborted(alarm)


def train(config: TrainConfig, console: Console) -> Path:
    """Start a run and train it to its end.

    Returns:
        The run's folder.
    """
    # Whatever is wrong with the model or the environment is said before a folder is made.
    assembly = assembled(config)
    config = _with_threads(config, assembly.num_threads)
    name = assembly.loaded.name
    with Run.create(Path(config.run.out), config=config, env=config.env.name, model=name, seed=config.run.seed) as run:
        run.write_file("agent.yaml", agent_card(config, assembly))
        assembly.frozen.continue_from(run.path / "usage.jsonl")
        with assembly.policy.serving(run.path):
            Trainer(config, assembly, run=run, console=console).train()
        return run.path


def _with_threads(config: TrainConfig, number: int) -> TrainConfig:
    """Store the number of threads that a run starts with, on which its numbers may depend."""
    return config.model_copy(update={"run": config.run.model_copy(update={"threads": number})})


def assembled(config: TrainConfig) -> Assembly:
    """Build the sampling side of a run, and refuse tasks and terms that could not be trained on.

    Raises:
        UserError: The environment, its tasks, the paid terms or the model cannot be used.
    """
    torch.manual_seed(config.run.seed)
    assembly = assemble(config)
    environment = assembly.make_environment()
    config.rewards.validate_terms([*environment.reward_terms, "well_formed"])
    load_tasks(environment, "train")
    if config.evaluation.num_tasks:
        load_tasks(environment, "heldout")
    return assembly


def resume(path: Path, console: Console) -> Path:
    """Continue a run that stopped, from its folder alone, exactly as if it had not stopped.

    Raises:
        DataError: The folder holds no run, or its checkpoint does not fit.
        ConfigError: Another process is writing it.
    """
    with Run.resume(path) as run:
        config = validate_options(TrainConfig, run.config, "config.yaml")
        assembly = assembled(config)
        assembly.frozen.continue_from(run.path / "usage.jsonl")
        trainer = Trainer(config, assembly, run=run, console=console)
        trainer.restore()
        with assembly.policy.serving(run.path):
            trainer.train()
        return run.path
