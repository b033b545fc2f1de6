"""The environment contract: a Gymnasium environment that speaks messages and names its reward terms.

    observation, info = environment.reset(seed=7, options={"task": task})
    observation, reward, terminated, truncated, info = environment.step(action)

`observation` is what the environment says since the policy last spoke (a tuple of `Message`); `action` is one
assistant `Message`. `info["reward_terms"]` maps names to numbers, `info["success"]` says whether the task is solved
once the episode has terminated. An environment never sees a tokenizer, and it never counts turns: limits belong to
the rollout.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import gymnasium
from pydantic import BaseModel

from agentflow.concurrency import call
from agentflow.config import Config, validate_options
from agentflow.errors import ConfigError, DataError
from agentflow.messages import Message, ToolSchema
from agentflow.plugins import Family, find_object
from agentflow.roles import NO_ROLES, Roles
from agentflow.spaces import AssistantMessage, Messages
from agentflow.trajectory import Task, Trajectory

Split: TypeAlias = Literal["train", "heldout"]
Observation: TypeAlias = tuple[Message, ...]
StepResult: TypeAlias = tuple[Observation, float, bool, bool, dict[str, Any]]

ENTRY_POINT_GROUP = "agentflow.environments"
SCHEME_GROUP = "agentflow.environment_schemes"
"""Functions that return the environment class for what stands behind their name and a colon, as `gymnasium:ID`."""


class NoOptions(Config):
    """The options of an environment that has none."""


class Expert(Protocol):
    """A scripted player of one episode, for imitation: sees what a policy sees, says what a policy says."""

    def act(self, observation: Observation) -> Message:
        """Return the next assistant message, given what the environment said since the last one."""
        ...


class Environment(gymnasium.Env[Observation, Message], ABC):
    """Base of AgentFlow's environments; subclass it, or `environments.ToolEnvironment` for one with tools.

    One instance plays one episode at a time. The rollout makes one instance per concurrent episode, so whatever is
    large and read-only (a corpus, an index) is built once and shared between instances.

    Args:
        roles: The frozen models of the run, by name; only a run that names any passes them.
        **options: Validated against `options_model`.

    Raises:
        ConfigError: An option is unknown or has the wrong type.
    """

    options_model: ClassVar[type[BaseModel]] = NoOptions
    """This environment's options: a subclass of `agentflow.config.Config`."""
    reward_terms: ClassVar[Mapping[str, str]] = {}
    """Every reward term the environment may report, with a sentence on what it measures."""
    outcome: ClassVar[str] = "success"
    """The reward term that is the environment's own reward: what counts as solving the task."""
    waits_outside: bool = False
    """True where a step waits on a network or another process: no batch is held back for such a step."""
    max_turns: int = 8
    """The default limit of turns in one episode."""

    observation_space = Messages()
    action_space = AssistantMessage()

    def __init__(self, *, roles: Roles = NO_ROLES, **options: Any) -> None:
        self.roles = roles
        self.options = validate_options(self.options_model, options, owner=type(self).__name__)

    @classmethod
    def terms_with(cls, options: BaseModel) -> Mapping[str, str]:
        """Return the reward terms under validated options; override it where an option adds some."""
        return cls.reward_terms

    @abstractmethod
    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split, always in the same order."""

    @abstractmethod
    def step(self, action: Message) -> StepResult:
        """Answer one assistant message: observation, reward, terminated, truncated, info."""

    @property
    def tool_schemas(self) -> tuple[ToolSchema, ...]:
        """The tools that the policy is told of."""
        return ()

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a scripted player of one episode, for imitation.

        It is called once `reset` has posed the task, so the expert may ask this environment for its state, here and in
        each `act`; whatever it draws, it draws by the seed. A message with `imitate=False` is played and not learned: a
        mistake that is made to show how it is mended.

        Raises:
            ConfigError: The environment ships no expert, or has none for this task.
        """
        raise ConfigError(
            f"{type(self).__name__} has no expert to imitate (task {task.id!r}).",
            "Define `expert(task, seed)` on it, or imitate a run's successes: agentflow sft --from-run RUN.",
        )

    def gold_answer(self, task: Task) -> str | None:
        """Return a final answer that must score full marks, or None where no single message can solve the task.

        By default the task's answer as text, the first one of several; None if it is anything but text or a number.
        """
        answer = next(iter(task.answer), None) if isinstance(task.answer, list | tuple) else task.answer
        return str(answer) if isinstance(answer, str | int | float) else None

    def hint(self, task: Task, level: int) -> str:
        """Return what an attempt may be told beside the task, level 1 the least; empty where there is no such hint.

        Methods that ask again with help read it (`algorithm.plan.kind=sage`); it may use the task's answer.
        """
        return ""

    def picture(self, trajectory: Trajectory) -> str | None:
        """Draw what happened in a trajectory of one of its tasks, as SVG for people; None where there is no picture."""
        return None

    async def areset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset without blocking the event loop; override it where reset can be awaited."""
        return await call(self.reset, seed=seed, options=options)

    async def astep(self, action: Message) -> StepResult:
        """Step without blocking the event loop; override it where a step can be awaited."""
        result: StepResult = await call(self.step, action)
        return result


def read_tasks(environment: Environment, split: Split) -> tuple[Task, ...]:
    """Return what a split holds, be it nothing.

    Raises:
        DataError: The split has no length.
    """
    posed = environment.tasks(split)
    if not hasattr(posed, "__len__"):
        raise DataError(
            f"{type(environment).__name__}.tasks({split!r}) has no length.", "Return a sequence of tasks, e.g. a list."
        )
    # A sequence that answers every index, and never with IndexError, would be read for ever.
    return tuple(itertools.islice(posed, len(posed)))


def require_expert(environment: Environment, task: Task, *, seed: int = 0) -> Expert:
    """Pose a task and return the environment's expert, which sees what it would in an episode.

    Raises:
        ConfigError: There is none.
    """
    environment.reset(seed=seed, options={"task": task})
    return environment.expert(task, seed)


def load_tasks(environment: Environment, split: Split) -> tuple[Task, ...]:
    """Return the tasks of a split, refusing what nobody could train or evaluate on.

    Raises:
        DataError: The split is empty, has no length, holds something that is no `Task`, or has two tasks of one id.
    """
    name = type(environment).__name__
    tasks = read_tasks(environment, split)
    if not tasks:
        raise DataError(f"{name} has no task in the split {split!r}.", "Return at least one from `tasks(split)`.")
    seen: set[str] = set()
    for task in tasks:
        if not isinstance(task, Task):
            raise DataError(f"{name}.tasks({split!r}) holds {task!r}.", "It must hold `Task(id=..., prompt=...)` only.")
        if task.id in seen:
            raise DataError(f"{name} has two tasks {task.id!r} in the split {split!r}.", "Give each its own id.")
        seen.add(task.id)
    return tasks


def load_environment(spec: str) -> type[Environment]:
    """Find an environment class.

    Args:
        spec: A name of the entry-point group `agentflow.environments`, `package.module:Class`,
            `path/to/file.py:Class`, or `SCHEME:...` with a name of the group `agentflow.environment_schemes`.

    Raises:
        ConfigError: Nothing goes by that name, the file is missing, or the object is no `Environment`.
    """
    scheme, _, named = spec.partition(":")
    schemes = {point.name: point for point in entry_points(group=SCHEME_GROUP)}
    if named and scheme in schemes:
        return _ENVIRONMENTS.checked(schemes[scheme].load()(named), spec)
    return _ENVIRONMENTS.find(spec)


def load_function(spec: str, *, option: str) -> Callable[..., Any]:
    """Find a function of the user's.

    Args:
        spec: `package.module:function` or `path/to/file.py:function`.
        option: The option that named it, for errors.

    Raises:
        ConfigError: There is no such file, module or function.
    """
    if ":" not in spec:
        raise ConfigError(f"{option} = {spec!r} names no function.", "Write FILE.py:FUNCTION or module:FUNCTION.")
    return find_object(spec, callable, what="function")  # type: ignore[no-any-return]


_ENVIRONMENTS: Family[Environment] = Family(
    what="environment",
    base=Environment,  # type: ignore[type-abstract]
    group=ENTRY_POINT_GROUP,
    own="agentflow.environments.ToolEnvironment",
    usage="--env path/to/file.py:Class",
)
