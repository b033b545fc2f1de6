"""The world behind HTTP: ActiveVLN's simulator server, or `agentflow tools serve navigation`."""

import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from agentflow.config import Config
from agentflow.environment import Expert, Split
from agentflow.environments.navigation.body import STOP, parse_actions
from agentflow.environments.navigation.episodes import read_episodes
from agentflow.environments.navigation.protocol import read_observation, say, unpack
from agentflow.environments.navigation.simulator_client import SimulatorClient, shared_client
from agentflow.environments.navigation.world import Leg, Place
from agentflow.errors import ConfigError, EnvironmentFailure
from agentflow.trajectory import Task

INSTRUCTIONS = "Follow the instruction. Look at each view, then move, one to three actions at once; STOP where it ends."
_STEP_M = 0.25


class HttpConfig(Config):
    """Where the simulator is, and which of its episodes are played."""

    url: str = Field(description="Address of the server, such as http://gpu-box:5001.")
    data_source: Literal["r2r", "rxr"] = Field("r2r", description="The server's data set.")
    train_ids: tuple[int, int] | None = Field(None, description="First and last number of the training episodes.")
    heldout_ids: tuple[int, int] | None = Field(None, description="First and last number of the held-out episodes.")
    episodes: str | None = Field(None, description="In place of numbers: a file of VLN-CE with the training episodes.")
    heldout_episodes: str | None = Field(None, description="A file of VLN-CE with the held-out episodes.")
    simulators: int = Field(16, ge=1, description="Simulators of the server: most environments at once.")
    timeout_s: float = Field(120.0, gt=0, description="Seconds that one request may take.")

    @model_validator(mode="after")
    def _has_episodes(self) -> Self:
        if (self.train_ids is None) == (self.episodes is None):
            raise ValueError("set train_ids or episodes, and not both")
        if (self.heldout_ids is None) == (self.heldout_episodes is None):
            raise ValueError("set heldout_ids or heldout_episodes, and not both")
        return self


class HttpWorld:
    """Episodes that a simulator plays.

    Args:
        config: Where it is.
        max_actions: Most actions of an episode, which the server keeps to as well.
    """

    instructions = INSTRUCTIONS
    tool_names = ("move",)
    max_turns = 40
    radius = 3.0
    waits_outside = True

    def __init__(self, config: HttpConfig, *, max_actions: int) -> None:
        self._config = config
        self._max_actions = max_actions

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the episodes of a split; what they tell comes from the server.

        Raises:
            DataError: A file of episodes is missing or broken.
        """
        return _tasks(self._config, split)

    async def begin(self, task: Task) -> "HttpWalk":
        """Take a simulator and begin an episode.

        Raises:
            BackendFailure: The server cannot be reached, or refuses.
            EnvironmentFailure: It answers in another form.
        """
        walk = HttpWalk(self._client, task, space=self._config.data_source)
        await walk.begin(self.env_config(task))
        return walk

    def env_config(self, task: Task) -> dict[str, Any]:
        """Return what the server is told of an episode."""
        return {
            "episode_id": task.answer["episode_id"],
            "data_source": self._config.data_source,
            "action_space": self._config.data_source,
            "history_actions": [],
            "step_budget": self._max_actions,
            "turn_budget": self._max_actions,
            "reward_type": "weighted_success",
            "success_reward_base": 15.0,
            "ndtw_reward_base": 0.0,
            "prompt_format": "no_think_no_tag",
            "max_actions_per_step": 3,
            "action_sep": ",",
        }

    async def warm_up(self, tasks: Sequence[Task]) -> None:
        """Let the server load the scenes of tasks that will be played soon.

        Raises:
            BackendFailure: The server cannot be reached, or refuses.
        """
        await self._client.warm_up([self.env_config(task) for task in tasks])

    def expert(self, task: Task, seed: int) -> Expert:
        """Refuse: the simulator shows nobody the way.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("A simulator behind HTTP has no expert.", "Imitate in another world, or a run's successes.")

    def replay(self, task: Task, calls: Sequence[str]) -> None:
        """Return None: the simulator does not say where the walker is."""

    @property
    def _client(self) -> SimulatorClient:
        return shared_client(self._config.url, self._config.simulators, self._config.timeout_s)


class HttpWalk:
    """One episode in a simulator; see `world.Walk`. Lengths are those of the actions: a blocked step counts too."""

    num_expert_actions = None
    reference: Sequence[Place] = ()

    def __init__(self, client: SimulatorClient, task: Task, *, space: Literal["r2r", "rxr"]) -> None:
        self._client = client
        self._space: Literal["r2r", "rxr"] = space
        self._id = f"{task.id}-{uuid.uuid4().hex[:12]}"
        self._num_steps = 0
        self._is_held = False
        self.shortest: float | None = task.answer.get("length")
        self.first = Leg("")

    async def begin(self, config: Mapping[str, Any]) -> None:
        """Create and reset the environment."""
        answer = await self._client.begin(self._id, config)
        self._is_held = True
        observations, _ = unpack(answer, self._id, ("observations", "info"))
        if not isinstance(observations, list) or not observations:
            raise EnvironmentFailure(
                f"the simulator answered {str(observations)[:80]!r} to a reset, not a list of views"
            )
        seen = [read_observation(observation) for observation in observations]
        self.first = Leg("\n".join(text for text, _ in seen), tuple(image for _, images in seen for image in images))

    async def take(self, words: str) -> Leg:
        """Carry out up to three actions."""
        actions = parse_actions(words)
        said = ", ".join(say(action, self._space) for action in actions)
        answer = await self._client.step(self._id, said)
        observation, _, done, info = unpack(answer, self._id, ("observation", "reward", "done", "info"))
        text, images = read_observation(observation)
        distance, num_steps = info.get("distance_to_goal"), info.get("env_local_step")
        if not isinstance(distance, int | float) or not isinstance(num_steps, int):
            raise EnvironmentFailure(f"the simulator's info has no distance_to_goal or env_local_step: {sorted(info)}")
        carried_out = actions[: num_steps - self._num_steps]
        self._num_steps = num_steps
        stopped = bool(done) and carried_out[-1:] == (STOP,)
        return Leg(
            text,
            images,
            distances=(float(distance),),
            length=sum(len(action) * _STEP_M for action in carried_out if action[0] == "F"),
            num_actions=len(carried_out),
            stopped=stopped,
            over=bool(done) and not stopped,
        )

    async def close(self) -> None:
        """Give the simulator back."""
        if self._is_held:
            self._is_held = False
            await self._client.end(self._id)


@lru_cache(maxsize=4)
def _tasks(config: HttpConfig, split: Split) -> tuple[Task, ...]:
    ids, file = (
        (config.train_ids, config.episodes) if split == "train" else (config.heldout_ids, config.heldout_episodes)
    )
    if ids is not None:
        return tuple(Task(f"{split}-{i}", f"Episode {i}.", {"episode_id": i}) for i in range(ids[0], ids[1] + 1))
    assert file is not None, "validated: numbers or a file"
    return tuple(
        Task(f"{split}-{each.id}", each.instruction, {"episode_id": _number(each.id), "length": each.length})
        for each in read_episodes(Path(file))
    )


def _number(episode_id: str) -> int | str:
    return int(episode_id) if episode_id.isdigit() else episode_id
