"""The embedded world as a simulator server: ActiveVLN's protocol over generated houses.

Training task n is episode n, held-out task n is episode 1,000,000 + n. An observation is the view in words and a
picture of 64 x 48. As in the original, a budget is tested after an action was carried out, so one more than the budget
is.
"""

import json
import math
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import Field, ValidationError

from agentflow.config import Config
from agentflow.environments.navigation import protocol
from agentflow.environments.navigation.body import STOP
from agentflow.environments.navigation.embedded import EmbeddedWalk, EmbeddedWorld
from agentflow.environments.navigation.metrics import soft_success
from agentflow.environments.navigation.navigation import NavigationOptions, embedded_world
from agentflow.errors import ConfigError
from agentflow.trajectory import Task

FIRST_HELDOUT = 1_000_000
_MAX_BODY_BYTES = 4 << 20


class EpisodeConfig(Config):
    """What a client asks of an episode; the other keys of the original are read over."""

    episode_id: int = Field(ge=0, description="The episode's number.")
    data_source: str = Field("r2r", pattern="r2r|rxr", description="Here the same houses for both.")
    action_space: str = Field("r2r", pattern="r2r|rxr", description="Turns by 15 or by 30 degrees.")
    history_actions: tuple[str, ...] = Field((), description="Actions that were carried out before the episode.")
    step_budget: int = Field(0, ge=0, description="Most actions.")
    turn_budget: int = Field(0, ge=0, description="Most turns.")
    success_reward_base: float = Field(10.0, description="The reward of a stop at the goal.")
    max_actions_per_step: int = Field(3, ge=1, description="Most actions of a turn.")
    action_sep: str = Field(",", min_length=1, description="What stands between actions.")


@dataclass(slots=True)
class Session:
    """One environment of a client.

    Attributes:
        config: What was asked.
        task: The task behind the episode.
        world: Where it is.
        walk: The walk under way; None before a reset.
        num_steps: Actions so far.
        num_turns: Turns so far.
        total: Rewards so far.
        distance: Metres to the goal.
        said: Every turn so far.
        began: When the episode began.
    """

    config: EpisodeConfig
    task: Task
    world: EmbeddedWorld
    walk: EmbeddedWalk | None = None
    num_steps: int = 0
    num_turns: int = 0
    total: float = 0.0
    distance: float = math.inf
    said: list[dict[str, Any]] = field(default_factory=list)
    began: float = 0.0

    async def reset(self) -> list[Any]:
        """Begin the episode: the views of the start and after each chunk of history."""
        self.walk = await self.world.begin(self.task)
        self.num_steps = self.num_turns = 0
        self.total, self.said, self.began = 0.0, [], time.monotonic()
        self.distance = self.walk.first.distances[-1]
        seen = [self._observe("Initial Observation", self.walk.first.text)]
        history, size = self.config.history_actions, self.config.max_actions_per_step
        for i in range(0, len(history), size):
            for action in history[i : i + size]:
                await self._carry_out(self._understood([action])[0] or "")
            seen.append(self._observe("After that, the observation is", self.walk.view()))
        return [seen, {}]

    async def step(self, response: str) -> list[Any]:
        """Play a turn: observation, reward, done, info."""
        if self.walk is None:
            raise web.HTTPBadRequest(text="the environment was not reset")
        self.num_turns += 1
        parts = [part.strip() for part in response.replace(protocol.PICTURE, "").split(self.config.action_sep)]
        said = [part for part in parts if part]
        end_reason = await self._play(said)
        done = bool(end_reason)
        stopped = end_reason in (protocol.SUCCESS, protocol.NOT_REACHED)
        share = soft_success(self.distance, stopped=stopped, radius=self.world.radius)
        reward = self.config.success_reward_base * share
        self.total += reward
        self.said.append({"response": response, "extracted_actions": said, "reward": reward})
        observation = self._observe("After that, the observation is", self.walk.view())
        return [observation, reward, done, self._info(said, done=done, end_reason=end_reason, reward=reward)]

    async def _play(self, said: Sequence[str]) -> str:
        """Carry out what was said; why the episode ends, or nothing."""
        actions = self._understood(said[: self.config.max_actions_per_step])
        if self.num_turns > self.config.turn_budget:
            return protocol.TURNS_EXCEEDED
        if not said or len(said) > self.config.max_actions_per_step or None in actions:
            return protocol.FORMAT_MISMATCH
        for action in actions:
            assert action is not None, "checked above"
            self.num_steps += 1
            if action == STOP:
                return protocol.SUCCESS if self.distance <= self.world.radius else protocol.NOT_REACHED
            await self._carry_out(action)
            if self.num_steps > self.config.step_budget:
                return protocol.STEPS_EXCEEDED
        return ""

    def _understood(self, said: Sequence[str]) -> list[str | None]:
        space: protocol.ActionSpace = "rxr" if self.config.action_space == "rxr" else "r2r"
        return [protocol.understand(text, space) for text in said]

    async def _carry_out(self, action: str) -> None:
        assert self.walk is not None, "reset before"
        # A turn of the space `rxr` is two of the body's.
        times = 2 if self.config.action_space == "rxr" and action[:1] in ("L", "R") else 1
        for _ in range(times):
            leg = await self.walk.take(action)
            self.distance = leg.distances[-1]

    def _observe(self, when: str, view: str) -> dict[str, Any]:
        assert self.walk is not None, "reset before"
        text = f"[{when}]:\n{protocol.PICTURE}\n{view}\nInstruction: {self.task.prompt}\nDecide your next action. "
        picture = {"__pil_image__": b64encode(self.walk.picture().data).decode()}
        return {"obs_str": text, "multi_modal_data": {protocol.PICTURE: [picture]}}

    def _info(self, said: Sequence[str], *, done: bool, end_reason: str, reward: float) -> dict[str, Any]:
        config = self.config
        return {
            "actions": list(said),
            "done": done,
            "task_success": end_reason == protocol.SUCCESS,
            "end_reason": end_reason,
            "distance_to_goal": self.distance,
            # Spelt as in the original, where it is whether the walker is near now.
            "orcale_success": self.distance <= self.world.radius,
            "episode_id": config.episode_id,
            "data_source": config.data_source,
            "action_space": config.action_space,
            "instruction": self.task.prompt,
            "env_local_step": self.num_steps,
            "env_global_step": self.num_steps + len(config.history_actions),
            "episode_elapsed_seconds": time.monotonic() - self.began,
            "global_start_step": len(config.history_actions) + 1,
            "step_budget": config.step_budget,
            "turn_budget": config.turn_budget,
            "total_reward": self.total,
            "reward_components": {"success_reward": reward, "ndtw_reward": 0.0},
            "gen_traj": self.said,
        }


class Simulators:
    """All environments of a server.

    Args:
        options: The houses.
        most: Environments at once.
    """

    def __init__(self, options: NavigationOptions, *, most: int) -> None:
        self._world = embedded_world(options)
        self._most = most
        self._sessions: dict[str, Session] = {}

    async def create(self, body: Mapping[str, Any]) -> Any:
        """Create environments, all of them or none."""
        wanted = _mapping(body, "ids2configs")
        if len(self._sessions) + len(wanted) > self._most:
            raise web.HTTPServiceUnavailable(text=f"{self._most} simulators, and too few of them are free")
        self._sessions |= {env_id: self._session(_mapping(config, "env_config")) for env_id, config in wanted.items()}
        return {"success": True}

    async def reset(self, body: Mapping[str, Any]) -> Any:
        """Reset environments; the seeds change nothing."""
        found = {env_id: self._find(env_id) for env_id in _mapping(body, "ids2seeds")}
        return {"results": {env_id: await session.reset() for env_id, session in found.items()}}

    async def step(self, body: Mapping[str, Any]) -> Any:
        """Play a turn in each of some environments."""
        said = _mapping(body, "ids2actions")
        found = {env_id: self._find(env_id) for env_id in said}
        return {"results": {env_id: await session.step(str(said[env_id])) for env_id, session in found.items()}}

    async def close(self, body: Mapping[str, Any]) -> Any:
        """Give simulators back."""
        for env_id in _listed(body, "env_ids"):
            self._find(env_id)
            del self._sessions[env_id]
        return {"status": "success"}

    async def warm_up(self, body: Mapping[str, Any]) -> Any:
        """Build the houses of episodes that will be played soon."""
        for config in _listed(body, "cfgs"):
            await self._world.begin(self._session(config).task)
        return {"success": True}

    def _session(self, config: Any) -> Session:
        known = {key: config[key] for key in EpisodeConfig.model_fields if key in config}
        try:
            asked = EpisodeConfig(**known)
        except ValidationError as error:
            first = error.errors()[0]
            raise web.HTTPBadRequest(text=f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        is_heldout = asked.episode_id >= FIRST_HELDOUT
        tasks = self._world.tasks("heldout" if is_heldout else "train")
        number = asked.episode_id - (FIRST_HELDOUT if is_heldout else 0)
        if number >= len(tasks):
            raise web.HTTPBadRequest(text=f"episode_id: there is no episode {asked.episode_id}")
        return Session(asked, tasks[number], self._world)

    def _find(self, env_id: Any) -> Session:
        if env_id not in self._sessions:
            raise web.HTTPBadRequest(text=f"there is no environment {env_id!r}")
        return self._sessions[env_id]


def make_app(options: NavigationOptions, *, simulators: int = 64) -> web.Application:
    """Return the server as an application.

    Args:
        options: The houses that it offers.
        simulators: Most environments at once.
    """
    service = Simulators(options, most=simulators)
    routes = {
        "/environments": service.create,
        "/batch/reset": service.reset,
        "/batch/step": service.step,
        "/batch/close": service.close,
        "/batch/warmup": service.warm_up,
    }

    def handler(method: Any) -> Any:
        async def handle(request: web.Request) -> web.Response:
            return web.json_response(await method(_parsed(await request.read())))

        return handle

    app = web.Application(middlewares=[_errors_as_json], client_max_size=_MAX_BODY_BYTES)
    app.add_routes([web.post(path, handler(method)) for path, method in routes.items()])
    return app


def serve(options: NavigationOptions, host: str, *, port: int, simulators: int) -> None:
    """Serve until the process is told to stop.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    app = make_app(options, simulators=simulators)
    try:
        web.run_app(app, host=host, port=port, print=lambda _: print(f"http://{host}:{port}", flush=True))
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.", "Choose another --port."
        ) from None


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(found, dict):
        raise web.HTTPBadRequest(text="the body must be an object")
    return found


def _mapping(body: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(body, Mapping) or not isinstance(body.get(key), dict):
        raise web.HTTPBadRequest(text=f"missing required parameter: {key}")
    found: Mapping[str, Any] = body[key]
    return found


def _listed(body: Mapping[str, Any], key: str) -> Sequence[Any]:
    if not isinstance(body.get(key), list):
        raise web.HTTPBadRequest(text=f"missing required parameter: {key}")
    found: Sequence[Any] = body[key]
    return found


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPException as error:
        return web.json_response({"error": error.text or error.reason}, status=error.status)
    return answer
