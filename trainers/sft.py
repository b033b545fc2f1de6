"""Supervised imitation: the cold start of a policy, from scripted experts or from its own best trajectories.

A run has one or more stages, each with its own environment: a curriculum. What is imitated are trajectories, like
those that a rollout samples, so the same packing and the same learner serve both.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from agentflow.agents.react import ReAct, react
from agentflow.attempts import Ask
from agentflow.batch import Batch
from agentflow.concurrency import run_blocking
from agentflow.config import Config, is_changed
from agentflow.environment import Environment, load_tasks, require_expert
from agentflow.errors import ConfigError, DataError, RunAborted
from agentflow.messages import Message
from agentflow.models import LoadedModel, ModelConfig, ignored_losses, load_model
from agentflow.play import AgentConfig, EpisodePlayer, Scene
from agentflow.renderer import Renderer
from agentflow.roles import PLANNER
from agentflow.rollout import derive_seed
from agentflow.runs import Run, StoredRun
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.speakers import ExpertSpeaker
from agentflow.trainers.checkpoints import save_checkpoint
from agentflow.trainers.console import Console
from agentflow.trainers.engines.base import Credit, Engine, LearnerConfig, Update
from agentflow.trainers.engines.local import LocalEngine
from agentflow.trainers.examination import Examination
from agentflow.trainers.judging import as_said
from agentflow.trainers.parts import environment_factory, use_threads
from agentflow.trainers.reporting import update_metrics
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trainers.settings import EnvironmentConfig, EvaluationConfig, RunConfig, Threads, TrainConfig
from agentflow.trainers.slots.losses.regularisers import Likelihood
from agentflow.trainers.slots.samplers import place
from agentflow.trainers.slots.weights import PerToken
from agentflow.trainers.starter import recommended
from agentflow.trajectory import Completion, Status, Task, Trajectory, Turn

_LOSS_WINDOW = 20
_PLAYERS = 8
"""Episodes of an expert that are under way at once."""
_TOLD = ("loss", "entropy", "grad_norm", "learning_rate", "updates/skipped", "tokens/")
"""Metrics that mean something in imitation."""


class StageConfig(Config):
    """One stage of imitation."""

    env: EnvironmentConfig = Field(description="The environment whose expert is imitated, and its options.")
    updates: int = Field(ge=1, description="Most updates of this stage.")
    until_loss: float | None = Field(
        None, gt=0, description="Mean loss of 20 updates at which the stage ends early; null plays all its updates."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of this stage; null for the learner's own."
    )
    episodes_per_update: int = Field(32, ge=1, description="Trajectories of one update.")
    num_episodes: int = Field(
        4096,
        ge=1,
        description="Trajectories that are played for this stage; updates draw from them, all before any twice.",
    )
    from_run: str | None = Field(
        None, description="A run whose successful trajectories are imitated in place of the expert's."
    )


class SftRunConfig(Config):
    """The extent of a run of imitation, and what is kept of it."""

    seed: int = Field(0, ge=0, description="Fixes experts, order and, for a new model, its first weights.")
    out: str = Field("runs", description="Folder in which the run makes its own.")
    log_every: int = Field(20, ge=1, description="Updates between two lines of metrics.")
    threads: Threads = Field("auto", description="Threads that compute, as in `agentflow train`.")
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints that stay; one is made at each evaluation and after each stage."
    )


class SftEvaluationConfig(EvaluationConfig):
    """Evaluation on the held-out split of the environment that is being taught."""

    every: int = Field(0, ge=0, description="Updates between evaluations; 0 evaluates after each stage only.")
    num_tasks: int = Field(100, ge=0, description="Held-out tasks of each evaluation; 0 never evaluates.")


class SftConfig(Config):
    """Everything that defines a run of imitation."""

    stages: tuple[StageConfig, ...] = Field(min_length=1, description="The stages, in order.")
    model: ModelConfig = Field(default=ModelConfig(), description="The model that is taught.")
    scratch: ScratchConfig | None = Field(
        None, description="Start from a randomly initialised model of this shape, and a tokenizer of the stages' texts."
    )
    learner: LearnerConfig = Field(default=LearnerConfig(learning_rate=1e-5), description="The optimiser.")
    agent: AgentConfig = Field(
        default=AgentConfig(),
        description="The limits of an episode; those of tokens are measured on what is imitated unless they are given.",
    )
    evaluation: SftEvaluationConfig = Field(default=SftEvaluationConfig(), description="Evaluation while teaching.")
    run: SftRunConfig = Field(default=SftRunConfig(), description="Seed and folder.")

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.scratch is not None and self.model != ModelConfig():
            raise ConfigError("`model` does nothing beside `scratch`.", "Give one of the two.")
        if is_changed(self.learner, "updates_per_iteration"):
            raise ConfigError("learner.updates_per_iteration does nothing in imitation.", "Leave it out.")
        if is_changed(self.evaluation, "every") and not self.evaluation.num_tasks:
            raise ConfigError("evaluation.every does nothing at evaluation.num_tasks=0.", "Leave it out.")
        if any(stage.from_run and is_changed(stage, "num_episodes") for stage in self.stages):
            raise ConfigError("num_episodes does nothing beside from_run.", "All successes of that run are imitated.")
        return self


def train_sft(config: SftConfig, console: Console) -> Path:
    """Teach a model by imitation.

    Returns:
        The run's folder; the model is in its latest checkpoint.

    Raises:
        ConfigError: An environment has no expert.
        DataError: A run to imitate holds no successful trajectory, or an expert says nothing that is to be imitated.
    """
    torch.manual_seed(config.run.seed)  # a new adapter's first weights are drawn
    environments = [environment_factory(stage.env)() for stage in config.stages]
    dialogues = [
        _play_stage(stage, environment, seed=derive_seed(config.run.seed, "stage", i), limits=config.agent)
        for i, (stage, environment) in enumerate(zip(config.stages, environments, strict=True))
    ]
    loaded = _load(config, dialogues)
    for line in ignored_losses(loaded.model):
        console.note(line)
    threads = use_threads(config.run.threads, loaded.model)
    config = config.model_copy(update={"run": config.run.model_copy(update={"threads": threads})})
    env = "+".join(dict.fromkeys(stage.env.name for stage in config.stages))
    with Run.create(
        Path(config.run.out), config=config, env=f"sft-{env}", model=loaded.name, seed=config.run.seed
    ) as run:
        console.started(run.path)
        num_done = 0
        for stage, environment, played in zip(config.stages, environments, dialogues, strict=True):
            renderer = Renderer(loaded.tokenizer, environment.tool_schemas)
            trajectories = [render(dialogue, renderer) for dialogue in played]
            advice = recommended(loaded, trajectories, limits=config.agent, max_turns=environment.max_turns)
            advised = replace(loaded, recommended=advice)
            engine = LocalEngine(loaded.model, _learner_config(config, stage), num_updates=stage.updates)
            examination = Examination(_setting(config, stage, advice), advised, console=console)
            course = _Course(stage, run, console=console, config=config.run, num_done=num_done)
            num_done = course.train(trajectories, engine, examination)
        return run.path


def _learner_config(config: SftConfig, stage: StageConfig) -> LearnerConfig:
    rate = stage.learning_rate or config.learner.learning_rate
    return config.learner.model_copy(update={"learning_rate": rate})


def _setting(config: SftConfig, stage: StageConfig, advice: Mapping[str, Any]) -> TrainConfig:
    """Return what a stage is examined under: its environment, and the limits that the model will recommend."""
    return TrainConfig(
        env=stage.env,
        agent=ReAct(**{**config.agent.model_dump(), **advice["agent"]}),
        evaluation=EvaluationConfig(**config.evaluation.model_dump()),
        run=RunConfig(seed=config.run.seed, threads=config.run.threads),
    )


@dataclass(frozen=True, slots=True)
class Dialogue:
    """An episode to imitate, in messages.

    Attributes:
        task: What was posed.
        seed: The seed of the episode.
        exchanges: For each turn, what the environment said and what was answered.
    """

    task: Task
    seed: int
    exchanges: tuple[tuple[tuple[Message, ...], Message], ...]

    @property
    def texts(self) -> Iterator[str]:
        """Everything that is said, as text."""
        for observation, reply in self.exchanges:
            yield from (f" {message.content}" for message in observation)
            yield f" {reply.content}"
            for call in reply.tool_calls:
                yield f" {call.name}"
                yield from (f" {word}" for pair in call.arguments.items() for word in map(str, pair))


async def demonstrate(
    make_environment: Callable[[], Environment], task: Task, *, seed: int, max_turns: int | None
) -> Dialogue:
    """Let the environment's own expert play one episode.

    Raises:
        RunAborted: The environment broke.
    """
    expert = ExpertSpeaker(make_expert=lambda environment, posed, _: environment.expert(posed, seed))
    player = EpisodePlayer(react, Scene(make_environment, {PLANNER: expert}, AgentConfig(max_turns=max_turns)))
    trajectory = (await player.play(Ask(f"expert/{task.id}/{seed}", task, seed))).main
    if trajectory.status.kind == "failed":
        raise RunAborted(f"The expert could not play the task {task.id!r}: {trajectory.status.detail}.")
    return dialogue_of(task, trajectory)


def dialogue_of(task: Task, trajectory: Trajectory) -> Dialogue:
    """Return what was said in an episode: the words, because another model writes them in other tokens."""
    return Dialogue(task, trajectory.seed, tuple((turn.messages, turn.reply.message) for turn in trajectory.turns))


def render(dialogue: Dialogue, renderer: Renderer) -> Trajectory:
    """Turn an episode into the trajectory that a policy which said the same would have left."""
    turns: list[Turn] = []
    length = 0
    unlearned: tuple[int, ...] = ()
    for number, (observation, reply) in enumerate(dialogue.exchanges):
        context = (*unlearned, *(renderer.extend(observation) if number else renderer.start(observation)))
        tokens = tuple(renderer.reply(reply))
        # What is not to be imitated is part of what the next turn reads.
        unlearned = () if reply.imitate else (*context, *tokens)
        if unlearned:
            continue
        completion = Completion(tokens, (0.0,) * len(tokens), "stop", 0)
        turns.append(Turn(length, context, completion, observation, renderer.parse(completion)))
        length += len(context) + len(tokens)
    return Trajectory(
        f"expert/{dialogue.task.id}/{dialogue.seed}",
        dialogue.task.id,
        dialogue.seed,
        tuple(turns),
        Status("completed"),
        success=None,
    )


def _play_stage(stage: StageConfig, environment: Environment, *, seed: int, limits: AgentConfig) -> list[Dialogue]:
    if stage.from_run:
        return _from_run(Path(stage.from_run))
    pool = load_tasks(environment, "train")
    tasks = [pool[place(i, len(pool), seed)] for i in range(stage.num_episodes)]
    require_expert(environment, tasks[0], seed=seed)  # an environment without an expert says so here
    make_environment = environment_factory(stage.env)

    async def play(number: int) -> list[Dialogue]:
        return [
            await demonstrate(make_environment, tasks[i], seed=derive_seed(seed, i), max_turns=limits.max_turns)
            for i in range(number, len(tasks), _PLAYERS)
        ]

    async def play_all() -> list[list[Dialogue]]:
        return await asyncio.gather(*map(play, range(_PLAYERS)))

    try:
        played = run_blocking(play_all())
    finally:
        environment.close()
    dialogues = [played[i % _PLAYERS][i // _PLAYERS] for i in range(len(tasks))]
    taught = [dialogue for dialogue in dialogues if any(reply.imitate for _, reply in dialogue.exchanges)]
    if not taught:
        raise DataError(f"The expert of {stage.env.name} says nothing that is to be imitated.", "Set imitate=True.")
    return taught


def _load(config: SftConfig, dialogues: Sequence[Sequence[Dialogue]]) -> LoadedModel:
    if config.scratch is None:
        return load_model(config.model, env=config.stages[-1].env.name)
    texts = (text for stage in dialogues for dialogue in stage for text in dialogue.texts)
    tokenizer = new_tokenizer(texts, config.scratch.max_words)
    model = new_model(tokenizer, config.scratch, seed=config.run.seed)
    use_agentflow_attention(model)
    return LoadedModel(model, tokenizer, "scratch")


def _from_run(path: Path) -> list[Dialogue]:
    """Read what was said in a run's successes."""
    run = StoredRun(path)
    found = [
        dialogue_of(group.task, trajectory)
        for iteration in run.rollout_iterations()
        for group in run.groups(iteration)
        for trajectory in group.trajectories
        if trajectory.success and not any(turn.reply.error for turn in trajectory.turns)
    ]
    if not found:
        raise DataError(
            f"{path} holds no successful trajectory without a malformed turn to imitate.",
            "Imitate another run, or the expert.",
        )
    return found


def imitate(engine: Engine, trajectories: Sequence[Trajectory]) -> Update:
    """Raise the likelihood of what was said in these trajectories: one update of mean token cross-entropy."""
    batch = Batch(
        tuple(map(as_said, trajectories)), np.arange(len(trajectories)), np.ones(len(trajectories), dtype=np.intp)
    )
    credit = Credit(np.ones(batch.turn_S.size), PerToken()(batch, {}))
    gradient = engine.differentiate(batch, (Likelihood(),), credit=credit, known={})
    return Update().plus(gradient, engine.apply())


class _Course:
    """One stage under way.

    Args:
        stage: The stage.
        run: Where its numbers go.
        console: Where its progress is shown.
        config: Seed and intervals.
        num_done: Updates of earlier stages.
    """

    def __init__(self, stage: StageConfig, run: Run, *, console: Console, config: SftRunConfig, num_done: int) -> None:
        self._stage = stage
        self._run = run
        self._console = console
        self._config = config
        self._num_done = num_done
        self._losses: deque[float] = deque(maxlen=_LOSS_WINDOW)

    def train(self, trajectories: Sequence[Trajectory], engine: Engine, examination: Examination) -> int:
        """Update until the stage is over; the number of updates of the run so far."""
        stage = self._stage
        rng = random.Random(derive_seed(self._config.seed, "order", self._num_done))  # noqa: S311  reproducible
        order: list[int] = []
        for number in range(1, stage.updates + 1):
            while len(order) < stage.episodes_per_update:
                order += rng.sample(range(len(trajectories)), len(trajectories))
            batch, order = order[: stage.episodes_per_update], order[stage.episodes_per_update :]
            update = imitate(engine, [trajectories[i] for i in batch])
            self._losses.append(sum(update.gradients[0].losses.values()))
            over = number == stage.updates or self._is_learned()
            examined = over or examination.is_due(number)
            self._report(number, update, examination.metrics() if examined else {}, over=over)
            if examined:
                keep = self._config.keep_checkpoints
                done = self._num_done + number
                save_checkpoint(self._run, done, loaded=examination.loaded, engine=engine, state={}, keep=keep)
            if over:
                break
        return self._num_done + number

    def _is_learned(self) -> bool:
        bound = self._stage.until_loss
        return bound is not None and len(self._losses) == _LOSS_WINDOW and sum(self._losses) / _LOSS_WINDOW <= bound

    def _report(self, number: int, update: Update, examined: dict[str, Any], *, over: bool) -> None:
        self._console.progress(number, self._stage.updates, f"imitate {self._stage.env.name}")
        if over or examined or number % self._config.log_every == 0:
            told = {name: value for name, value in update_metrics(update).items() if name.startswith(_TOLD)}
            metrics: dict[str, Any] = {"iteration": self._num_done + number, **told, **examined}
            self._run.log(metrics)
            self._console.iteration(metrics)
