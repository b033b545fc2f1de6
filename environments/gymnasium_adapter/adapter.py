"""Any Gymnasium environment, played by a policy that reads and writes text: `--env gymnasium:ID`."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from pydantic import Field

from agentflow.config import Config
from agentflow.environment import Expert, Observation, Split, load_function
from agentflow.environments.gymnasium_adapter.actions import make_tool
from agentflow.environments.gymnasium_adapter.experts import expert_for
from agentflow.environments.gymnasium_adapter.names import SOLVED_BY_ENDING, action_names, find_spec
from agentflow.environments.gymnasium_adapter.observations import Observe, observer_for
from agentflow.environments.gymnasium_adapter.own_thread import OwnThread, shared_thread
from agentflow.environments.tool_environment import ToolEnvironment, ToolResult
from agentflow.errors import ConfigError, ToolError
from agentflow.messages import Message
from agentflow.tools.tool import Tool, ToolOutput
from agentflow.trajectory import Task

_MAX_STEPS = 100
_HELDOUT_SEEDS = 1_000_000
"""The first seed of the held-out split."""


class GymnasiumOptions(Config):
    """The options of any Gymnasium environment."""

    make: dict[str, Any] = Field(
        default={}, description="Arguments for `gymnasium.make`, such as `is_slippery: false`."
    )
    instructions: str = Field("", description="The system message; empty for the environment's name and its actions.")
    action_names: tuple[str, ...] = Field((), description="Names of the actions of a Discrete space, in order.")
    actions_per_turn: int = Field(1, ge=1, le=64, description="Most actions of one call.")
    observe: str | None = Field(
        None, description="`FILE.py:function` or `module:function` that writes observations: (observation, info, env)."
    )
    success: str | None = Field(
        None,
        description="`FILE.py:function` or `module:function` that says at the end if it is solved: (return, info).",
    )
    success_key: str | None = Field(None, description="Key of the last `info` that says if it is solved.")
    success_return: float | None = Field(
        None, description="Return from which it is solved; null for the environment's own, or a last reward above 0."
    )
    max_steps: int | None = Field(
        None, ge=1, description="Most steps of an episode; null for the environment's own, or else 100."
    )
    thread: Literal["own", "shared"] = Field(
        "own", description="Environments live in a thread each, or `shared` by all: for libraries that want one."
    )
    train_tasks: int = Field(500, ge=1, le=1_000_000, description="Seeds of the training split: each is a task.")
    heldout_tasks: int = Field(200, ge=1, description="Seeds of the held-out split.")
    expert_noise: float = Field(0.0, ge=0, le=1, description="Share of the expert's actions drawn at random.")


class GymnasiumEnvironment(ToolEnvironment):
    """Play a Gymnasium environment by calling `act`.

    Subclasses name one; `environment_class` makes them.

    Raises:
        ConfigError: The id is unknown, or its actions or observations cannot be written as text.
    """

    env_id: ClassVar[str] = ""
    options_model = GymnasiumOptions
    outcome = "return"
    reward_terms: ClassVar[Mapping[str, str]] = {
        "return": "The sum of the environment's own rewards.",
        "success": "Whether it is solved, by the return, a key of `info` or a function.",
        "steps": "Steps of the environment.",
    }

    options: GymnasiumOptions
    _info: Mapping[str, Any]
    _return: float
    _told: dict[str, float]
    _last_reward: float
    _over: bool
    _terminated: bool
    _steps: int
    _seed: int

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._thread: OwnThread = shared_thread() if self.options.thread == "shared" else OwnThread()
        self._env: gymnasium.Env[Any, Any] | None = None
        shape = _shape_of(self.env_id, self.options.model_dump_json())
        self._shape = shape
        self.instructions = self.options.instructions or shape.instructions  # type: ignore[misc]  # by option
        most = self.options.actions_per_turn
        self.max_turns = math.ceil(shape.num_steps / most)
        self._tool = make_tool(shape.space, shape.names, most=most, act=self._act)

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return a task for each seed of a split."""
        first, count = (
            (0, self.options.train_tasks) if split == "train" else (_HELDOUT_SEEDS, self.options.heldout_tasks)
        )
        return [Task(f"{split}-{seed:05d}", self._shape.name, answer={"seed": first + seed}) for seed in range(count)]

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The one tool, `act`."""
        return {self._tool.name: self._tool}

    async def on_reset(self, task: Task, rng: np.random.Generator) -> None:
        """Reset the environment with the task's seed."""
        self._seed = int(task.answer["seed"])
        self._return, self._last_reward, self._steps, self._told = 0.0, 0.0, 0, {}
        self._over = self._terminated = False
        self._first = await self._thread.run(self._begin)

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: the system message, and the first observation.

        Raises:
            ConfigError: An option other than `task` is given.
            DataError: There is no such task, or no task at all.
        """
        (*before, _), info = await super().areset(seed=seed, options=options)
        return (*before, Message("user", self._first)), info

    async def turn_terms(self, results: Sequence[ToolResult]) -> Mapping[str, float]:
        """Report the rewards of the turn's steps; at the end of the episode that is left to the score."""
        return {} if any(result.ends == "over" for result in results) else self._changes()

    async def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Report the rewards of the last steps, and whether it is solved; an answer without a call gives up."""
        return self._changes()

    def is_success(self, terms: Mapping[str, float]) -> bool:
        """Say whether it is solved."""
        return self._is_solved()

    def gold_answer(self, task: Task) -> str | None:
        """Return None: a task takes actions."""
        return None

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a scripted player: BabyAI's bot, or the best play where the environment publishes its transitions.

        Raises:
            ConfigError: None ships with the environment.
        """
        return expert_for(
            self._make(),
            int(task.answer["seed"]),
            names=self._shape.names,
            most=self.options.actions_per_turn,
            noise=self.options.expert_noise,
            noise_seed=seed,
        )

    def close(self) -> None:
        """Close the environment, in its thread."""
        env, self._env = self._env, None
        if env is not None:
            self._thread.end(env.close)

    def _make(self) -> gymnasium.Env[Any, Any]:
        return make_env(self.env_id, self._shape.render_mode, self.options)

    def _begin(self) -> str:
        if self._env is None:
            self._env = self._make()
        observation, self._info = self._env.reset(seed=self._seed)
        return self._shape.observe(observation, self._info, self._env)

    async def _act(self, actions: list[Any]) -> ToolOutput:
        if self._over:
            raise ToolError("the episode is over")
        return await self._thread.run(lambda: self._steps_of(actions))

    def _steps_of(self, actions: Sequence[Any]) -> ToolOutput:
        assert self._env is not None, "reset makes it"
        truncated = False
        observation: Any = None
        for action in actions:
            observation, reward, self._terminated, truncated, self._info = self._env.step(action)
            self._last_reward = float(reward)
            self._return += self._last_reward
            self._steps += 1
            truncated = truncated or (self._shape.is_endless and self._steps >= self._shape.num_steps)
            if self._terminated or truncated:
                break
        self._over = self._terminated or truncated
        text = self._shape.observe(observation, self._info, self._env)
        # Who must hold out until the time limit has solved it there.
        if self._terminated or (truncated and self._is_solved()):
            return ToolOutput(text, ends="over")
        return ToolOutput(text, ends="limit" if truncated else "")

    def _is_solved(self) -> bool:
        if not self._over:
            return False
        if self._shape.success is not None:
            return bool(self._shape.success(self._return, self._info))
        if self.options.success_key is not None:
            return bool(self._info.get(self.options.success_key, False))
        if self._shape.is_solved_by_ending:
            return self._terminated
        least = self._shape.success_return
        return self._last_reward > 0 if least is None else self._return >= least

    def _changes(self) -> dict[str, float]:
        values = {"return": self._return, "success": float(self._is_solved()), "steps": float(self._steps)}
        changes = {name: value - self._told.get(name, 0.0) for name, value in values.items()}
        self._told = values
        return changes


class _Shape:
    """What is the same for all episodes, found by making the environment once.

    Args:
        env_id: The environment's id.
        options: Its options.
    """

    def __init__(self, env_id: str, options: GymnasiumOptions) -> None:
        spec = find_spec(env_id)
        self.name = env_id.rpartition(":")[2]
        probe = make_env(env_id, None, options)
        try:
            probe.reset(seed=0)
            self.space = probe.action_space
            self.names = action_names(probe, options.action_names)
            self.observe, self.render_mode = _observer(probe, options)
            own_limit = spec.max_episode_steps or getattr(probe.unwrapped, "max_steps", None)
        finally:
            probe.close()
        self.is_endless = not (options.max_steps or own_limit)
        self.num_steps = int(options.max_steps or own_limit or _MAX_STEPS)
        threshold = spec.reward_threshold if options.success_return is None else options.success_return
        self.success_return = None if threshold is None else float(threshold)
        self.is_solved_by_ending = spec.name in SOLVED_BY_ENDING and options.success_return is None
        self.success: Callable[[float, Mapping[str, Any]], Any] | None = (
            None if options.success is None else load_function(options.success, option="env.success")
        )
        acts = f" Actions: {', '.join(self.names)}." if self.names else ""
        self.instructions = f"Play {self.name} with the tool act.{acts}"


def _observer(probe: gymnasium.Env[Any, Any], options: GymnasiumOptions) -> tuple[Observe, str | None]:
    if options.observe is not None:
        mode = options.make.get("render_mode")
        return load_function(options.observe, option="env.observe"), mode
    return observer_for(probe.observation_space, list(probe.metadata.get("render_modes", [])))


def make_env(env_id: str, render_mode: str | None, options: GymnasiumOptions) -> gymnasium.Env[Any, Any]:
    """Make the Gymnasium environment.

    Raises:
        ConfigError: It needs a package that is missing, or other arguments.
    """
    arguments = dict(options.make)
    if render_mode is not None:
        arguments.setdefault("render_mode", render_mode)
    if options.max_steps is not None:
        arguments.setdefault("max_episode_steps", options.max_steps)
    try:
        # Gymnasium's checks of the environment itself are the author's to run, and not for each episode.
        return gymnasium.make(env_id.rpartition(":")[2], disable_env_checker=True, **arguments)
    except (gymnasium.error.Error, TypeError) as error:
        raise ConfigError(
            f"Gymnasium cannot make {env_id!r}: {error}", "Check env.make and what is installed."
        ) from error


@lru_cache(maxsize=32)
def _shape_of(env_id: str, options: str) -> _Shape:
    return _Shape(env_id, GymnasiumOptions.model_validate_json(options))


@lru_cache(maxsize=64)
def environment_class(env_id: str) -> type[GymnasiumEnvironment]:
    """Return the environment that stands for a Gymnasium id; `PACKAGE:ID` imports the package first.

    Raises:
        ConfigError: Nothing goes by that id, or its package is not installed.
    """
    spec = find_spec(env_id)
    doc = f"{spec.id} of Gymnasium, as a game of calls."
    return type(f"Gymnasium[{spec.id}]", (GymnasiumEnvironment,), {"env_id": env_id, "__doc__": doc})
