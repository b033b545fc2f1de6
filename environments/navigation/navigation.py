"""The navigation environment: follow an instruction to a place, and say that you are there."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from agentflow.concurrency import run_blocking
from agentflow.config import Config
from agentflow.environment import Expert, Observation, Split
from agentflow.environments.navigation.course import CourseConfig
from agentflow.environments.navigation.embedded import EmbeddedWorld
from agentflow.environments.navigation.graph_world import GraphConfig, GraphWorld
from agentflow.environments.navigation.house import HouseConfig
from agentflow.environments.navigation.http_world import HttpConfig, HttpWorld
from agentflow.environments.navigation.instructions import Family
from agentflow.environments.navigation.measures import TERMS, Measures
from agentflow.environments.navigation.metrics import step_budget
from agentflow.environments.navigation.world import Leg, Walk, World
from agentflow.environments.tool_environment import ToolEnvironment, ToolResult
from agentflow.messages import Message
from agentflow.tools.tool import Tool, ToolOutput, tool, tools_of
from agentflow.trajectory import Task, Trajectory

_CALLS: Mapping[str, str] = {"move": "actions", "go": "to", "stop": ""}


class NavigationOptions(Config):
    """The options of the navigation environment."""

    world: Literal["embedded", "graph", "http"] = Field(
        "embedded",
        description="Where one walks: `embedded` generates houses, `graph` reads Matterport's graphs, `http` asks a "
        "simulator that speaks ActiveVLN's protocol.",
    )
    seed: int = Field(0, ge=0, description="Fixes the embedded houses and their tasks.")
    house: HouseConfig = Field(default=HouseConfig(), description="What embedded houses are like.")
    doors: tuple[Annotated[int, Field(ge=1, le=12)], ...] = Field(
        (1, 2, 3), min_length=1, description="Doors on the way, in turn."
    )
    families: tuple[Family, ...] = Field(
        ("route",),
        min_length=1,
        description="What instructions tell, in turn: `route`, `relative`, `landmarks`, `terse`, `goal`.",
    )
    train_tasks: int = Field(4000, ge=1, le=1_000_000, description="Tasks of the training split.")
    heldout_tasks: int = Field(400, ge=1, description="Tasks of the held-out split.")
    radius: float | None = Field(
        None, gt=0, description="Metres from the goal at which a stop succeeds; null for the world's own."
    )
    budget_factor: float | None = Field(
        None,
        gt=0,
        description="In training an episode ends after so many times the expert's actions; null lets it go on.",
    )
    max_actions: int = Field(120, ge=1, description="Most actions of an episode, in training and held out.")
    expert_noise: float = Field(0.0, ge=0, le=1, description="How often the scripted expert errs: 0 never.")
    images: bool = Field(
        False, description="A picture beside each view of the embedded world: for people, and policies that see."
    )
    graph: GraphConfig | None = Field(None, description="Graphs and episodes of the world `graph`.")
    http: HttpConfig | None = Field(None, description="The simulator of the world `http`.")

    @model_validator(mode="after")
    def _walkable(self) -> Self:
        if (self.world == "graph") != (self.graph is not None):
            raise ValueError("world=graph goes with graph.connectivity and graph.episodes, and no other world does")
        if (self.world == "http") != (self.http is not None):
            raise ValueError("world=http goes with http.url and its episodes, and no other world does")
        if self.house.columns * self.house.rows < 2:
            raise ValueError("a house of one room has no way through a door: raise house.columns or house.rows")
        return self


class Navigation(ToolEnvironment):
    """Follow instructions through buildings that were never seen.

    Raises:
        ConfigError: An option is wrong.
    """

    options_model = NavigationOptions
    max_turns = 16
    reward_terms: ClassVar[Mapping[str, str]] = TERMS

    options: NavigationOptions
    _walk: Walk | None = None
    _measures: Measures
    _budget: int

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._world = _world(self.options)
        self._radius = self.options.radius or self._world.radius
        self.instructions = self._world.instructions  # type: ignore[misc]  # by option
        self.max_turns = self._world.max_turns
        self.waits_outside = self._world.waits_outside

    @classmethod
    def terms_with(cls, options: BaseModel) -> Mapping[str, str]:
        """Return the reward terms."""
        return cls.reward_terms

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split."""
        return self._world.tasks(split)

    @cached_property
    def tools(self) -> Mapping[str, Tool]:
        """The tools of the world."""
        return {name: found for name, found in tools_of(self).items() if name in self._world.tool_names}

    @tool
    async def move(self, actions: str) -> ToolOutput:
        """Move, one to three actions at once.

        Args:
            actions: F FF FFF go 25 50 75 cm, L LL LLL and R RR RRR turn 15 30 45 degrees, STOP ends.
        """
        return await self._take(actions)

    @tool
    async def go(self, to: int) -> ToolOutput:
        """Go to a neighbouring viewpoint.

        Args:
            to: Its number.
        """
        return await self._take(str(to))

    @tool
    async def stop(self) -> ToolOutput:
        """Say that you are where the instruction ends."""
        return await self._take("stop")

    async def on_reset(self, task: Task, rng: np.random.Generator) -> None:
        """Begin a walk."""
        await self._leave()
        self._walk = await self._world.begin(task)
        self._measures = Measures(self._walk, self._radius)
        self._budget = self._most_actions(task, self._walk.num_expert_actions)

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: the instruction, and the first view.

        Raises:
            ConfigError: An option other than `task` is given.
            DataError: There is no such task, or no task at all.
        """
        (*before, asked), info = await super().areset(seed=seed, options=options)
        first = self._under_way.first
        return (*before, Message("user", f"{asked.content}\n{first.text}", images=first.images)), info

    async def turn_terms(self, results: Sequence[ToolResult]) -> Mapping[str, float]:
        """Report how the measures changed; at the end of the episode that is left to the score."""
        if not all(result.ok for result in results):
            self._measures.add_error()
        return {} if any(result.ends == "over" for result in results) else self._measures.changes()

    async def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Report how the measures changed at the end; an answer without a call is taken for a stop."""
        self._measures.add(Leg("", stopped=True))
        return self._measures.changes()

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a scripted walker that knows the way and, with `expert_noise`, sometimes leaves it."""
        return self._world.expert(task, seed)

    def gold_answer(self, task: Task) -> str | None:
        """Return None: a task takes a walk."""
        return None

    def picture(self, trajectory: Trajectory) -> str | None:
        """Draw the way of a trajectory from above: start, goal, path and the expert's path."""
        task = self._find_task({"task": trajectory.task_id}, np.random.default_rng(0))
        calls = [call for turn in trajectory.turns for call in turn.reply.message.tool_calls if call.name in self.tools]
        return self._world.replay(task, [str(call.arguments.get(_CALLS[call.name], call.name)) for call in calls])

    @property
    def _under_way(self) -> Walk:
        assert self._walk is not None, "reset begins a walk"
        return self._walk

    async def _take(self, words: str) -> ToolOutput:
        leg = await self._under_way.take(words)
        self._measures.add(leg)
        if leg.stopped:
            return ToolOutput(leg.text, leg.images, ends="over")
        used_up = leg.over or self._measures.num_actions >= self._budget
        return ToolOutput(leg.text, leg.images, ends="limit" if used_up else "")

    def close(self) -> None:
        """Give back what the episode holds."""
        if self._walk is not None:
            run_blocking(self._leave())

    async def _leave(self) -> None:
        walk, self._walk = self._walk, None
        if walk is not None:
            await walk.close()

    def _most_actions(self, task: Task, num_expert_actions: int | None) -> int:
        """Return ActiveVLN's budget in training, and a fixed one otherwise: the expert's length is told to nobody."""
        options = self.options
        if options.budget_factor is None or num_expert_actions is None or not task.id.startswith("train-"):
            return options.max_actions
        return step_budget(num_expert_actions, factor=options.budget_factor, most=options.max_actions)


def embedded_world(options: NavigationOptions) -> EmbeddedWorld:
    """Return the generated houses of some options."""
    config = CourseConfig(options.seed, options.house, options.doors, options.families)
    counts: dict[Split, int] = {"train": options.train_tasks, "heldout": options.heldout_tasks}
    return EmbeddedWorld(config, counts, noise=options.expert_noise, with_images=options.images)


def _world(options: NavigationOptions) -> World:
    if options.graph is not None:
        return GraphWorld(options.graph)
    if options.http is not None:
        return HttpWorld(options.http, max_actions=options.max_actions)
    return embedded_world(options)
