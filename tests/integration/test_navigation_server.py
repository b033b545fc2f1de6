"""The embedded houses behind ActiveVLN's protocol, played by our own client; and what other servers may do."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentflow.environments.navigation import Navigation, NavigationOptions, protocol
from agentflow.environments.navigation.http_world import HttpConfig, HttpWorld
from agentflow.environments.navigation.server import FIRST_HELDOUT, make_app, serve
from agentflow.environments.navigation.simulator_client import SimulatorClient
from agentflow.errors import BackendFailure, ConfigError, EnvironmentFailure
from agentflow.messages import Message, ToolCall
from agentflow.trajectory import Task

MANY = {key: {"env_config": {"episode_id": 0}} for key in "abcd"}
HOUSES: dict[str, Any] = {"train_tasks": 12, "heldout_tasks": 8}


@pytest.fixture(name="url")
async def serve_houses() -> AsyncIterator[str]:
    async with TestServer(make_app(NavigationOptions(**HOUSES), simulators=3)) as server:
        yield str(server.make_url("")).rstrip("/")


def client_of(url: str, **options: Any) -> Navigation:
    ids = {"train_ids": (0, 11), "heldout_ids": (FIRST_HELDOUT, FIRST_HELDOUT + 7)}
    return Navigation(world="http", http={"url": url, "simulators": 3, **ids}, radius=0.75, **options)


async def post(url: str, route: str, body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/{route}", json=body) as answer:
        return answer.status, await answer.json()


async def play(environment: Navigation, task: Task, teacher: Task) -> dict[str, float]:
    """Let the embedded world's expert play an episode behind the protocol; the sums of the terms."""
    houses = Navigation(**HOUSES)
    observation, _ = await environment.areset(seed=0, options={"task": task})
    expert, over, sums = houses.expert(teacher, 0), False, dict[str, float]()
    while not over:
        observation, _, over, _, info = await environment.astep(expert.act(observation))
        sums = {name: sums.get(name, 0.0) + value for name, value in info["reward_terms"].items()}
    await asyncio.to_thread(environment.close)
    return {**sums, "solved": info["success"]}


async def test_episodes_behind_the_protocol_are_those_of_the_world_itself(url: str) -> None:
    houses = Navigation(**HOUSES)
    for split in ("train", "heldout"):
        environment = client_of(url)
        tasks = list(zip(environment.tasks(split), houses.tasks(split), strict=True))
        # More episodes than simulators: each waits for its own.
        played = await asyncio.gather(*(play(client_of(url), task, teacher) for task, teacher in tasks))
        assert all(sums["solved"] == 1.0 == sums["success"] and sums["navigation_error"] <= 0.75 for sums in played)
        one = await play(houses, tasks[0][1], tasks[0][1])
        assert {name: played[0][name] for name in ("navigation_error", "soft_success", "actions")} == pytest.approx(
            {name: one[name] for name in ("navigation_error", "soft_success", "actions")}
        )


async def test_the_first_message_tells_the_instruction_and_shows_the_view(url: str) -> None:
    environment = client_of(url)
    (_, asked), _ = await environment.areset(seed=0, options={"task": environment.tasks("train")[3]})
    assert Navigation(**HOUSES).tasks("train")[3].prompt in asked.content and "<image>" not in asked.content
    (image,) = asked.images
    assert image.size == (64, 48)
    (answer,), *_ = await environment.astep(Message("assistant", tool_calls=(ToolCall("move", {"actions": "LLL F"}),)))
    assert len(answer.images) == 1 and answer.images[0] != image
    await asyncio.to_thread(environment.close)


async def test_the_budget_ends_an_episode_one_action_late(url: str) -> None:
    environment = client_of(url, max_actions=4)
    world = HttpWorld(HttpConfig(url=url, train_ids=(0, 3), heldout_ids=(9, 9)), max_actions=4)
    walk = await world.begin(environment.tasks("train")[0])
    legs = [await walk.take("L R L"), await walk.take("R L R")]
    await walk.close()
    assert [(leg.num_actions, leg.over, leg.stopped) for leg in legs] == [(3, False, False), (2, True, False)]


async def test_a_stop_far_from_the_goal_is_paid_nothing(url: str) -> None:
    await post(
        url,
        "environments",
        {"ids2configs": {"a": {"env_name": "vlnce", "env_config": {"episode_id": 0, "turn_budget": 9}}}},
    )
    _, reset = await post(url, "batch/reset", {"ids2seeds": {"a": 0}})
    observations, info = reset["results"]["a"]
    assert len(observations) == 1 and info == {}
    _, stepped = await post(url, "batch/step", {"ids2actions": {"a": "stop"}})
    _, reward, done, info = stepped["results"]["a"]
    assert (reward, done, info["end_reason"], info["task_success"]) == (0.0, True, protocol.NOT_REACHED, False)
    assert info["distance_to_goal"] > 0.75 and info["env_local_step"] == 1 and len(info["gen_traj"]) == 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("jump", protocol.FORMAT_MISMATCH),
        ("", protocol.FORMAT_MISMATCH),
        ("turn left 15 degrees, turn left 15 degrees, turn left 15 degrees, stop", protocol.FORMAT_MISMATCH),
        ("turn left 20 degrees", protocol.FORMAT_MISMATCH),
        ("turn left 90 degrees", protocol.FORMAT_MISMATCH),
        ("move forward 75cm, turn right 45 degrees", ""),
    ],
)
async def test_what_is_no_action_ends_the_episode(url: str, said: str, reason: str) -> None:
    config = {"episode_id": 1, "step_budget": 9, "turn_budget": 9}
    await post(url, "environments", {"ids2configs": {"a": {"env_config": config}}})
    await post(url, "batch/reset", {"ids2seeds": {"a": 0}})
    _, stepped = await post(url, "batch/step", {"ids2actions": {"a": said}})
    _, reward, done, info = stepped["results"]["a"]
    assert (reward, done, info["end_reason"]) == (0.0, bool(reason), reason)


async def test_history_is_walked_before_the_episode(url: str) -> None:
    history = ["turn left 30 degrees"] * 4
    config = {"episode_id": 2, "history_actions": history, "turn_budget": 9, "step_budget": 9, "action_space": "rxr"}
    await post(url, "environments", {"ids2configs": {"a": {"env_config": config}}})
    _, reset = await post(url, "batch/reset", {"ids2seeds": {"a": 0}})
    assert len(reset["results"]["a"][0]) == 3, "the start, and a view after each chunk of three"
    _, stepped = await post(url, "batch/step", {"ids2actions": {"a": "turn left 90 degrees"}})
    info = stepped["results"]["a"][3]
    assert (info["env_local_step"], info["env_global_step"], info["global_start_step"]) == (1, 5, 5)


@pytest.mark.parametrize(
    ("route", "body", "status", "said"),
    [
        ("environments", {}, 400, "ids2configs"),
        ("environments", {"ids2configs": {"a": {"env_config": {"episode_id": 99}}}}, 400, "no episode 99"),
        ("environments", {"ids2configs": {"a": {"env_config": {"episode_id": "x"}}}}, 400, "episode_id"),
        ("environments", {"ids2configs": MANY}, 503, "3 simulators"),
        ("batch/step", {"ids2actions": {"nobody": "stop"}}, 400, "no environment 'nobody'"),
        ("batch/close", {"env_ids": ["nobody"]}, 400, "no environment 'nobody'"),
        ("batch/warmup", {}, 400, "cfgs"),
    ],
)  # fmt: skip
async def test_wrong_requests_are_refused(url: str, route: str, body: Any, status: int, said: str) -> None:
    found, answer = await post(url, route, body)
    assert found == status and said in answer["error"]


async def test_scenes_can_be_loaded_ahead(url: str) -> None:
    world = HttpWorld(HttpConfig(url=url, train_ids=(0, 3), heldout_ids=(9, 9)), max_actions=4)
    await world.warm_up(world.tasks("train"))
    with pytest.raises(BackendFailure, match="no episode 9999"):
        await world.warm_up([Task("x", "", {"episode_id": 9999})])


@pytest.fixture(name="odd")
async def serve_oddly() -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A server whose answers a test chooses, and which counts requests."""
    said: dict[str, Any] = {"requests": [], "step": {}, "view": {"obs_str": "<image> here", "multi_modal_data": {}}}

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        said["requests"].append((request.path, body))
        if request.path == "/batch/reset":
            return web.json_response({"results": {key: [[said["view"]], {}] for key in body["ids2seeds"]}})
        if request.path == "/batch/step":
            results = {key: said["step"] for key in body["ids2actions"]}
            return web.Response(text=json.dumps({"results": results}), content_type="application/json")
        return web.json_response({"success": True})

    app = web.Application()
    app.router.add_post("/{route:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/"), said


def far(distance: float) -> list[Any]:
    return [
        {"obs_str": "there", "multi_modal_data": {}},
        0.0,
        False,
        {"distance_to_goal": distance, "env_local_step": 1},
    ]


STEP = Message("assistant", tool_calls=(ToolCall("move", {"actions": "FFF"}),))


async def test_an_infinite_distance_is_a_far_one(odd: tuple[str, dict[str, Any]]) -> None:
    url, said = odd
    environment = client_of(url)
    await environment.areset(seed=0, options={"task": environment.tasks("train")[0]})
    said["step"] = far(math.inf)
    *_, info = await environment.astep(STEP)
    assert info["reward_terms"]["navigation_error"] == 1000.0 and info["reward_terms"]["oracle_success"] == 0.0


@pytest.mark.parametrize(
    "step",
    [[], {"a": 1}, [{"obs_str": "x"}, 0, False, {}], ["x", 0, False, {"distance_to_goal": 1, "env_local_step": 1}]],
)
async def test_answers_of_another_form_fail_the_episode(odd: tuple[str, dict[str, Any]], step: Any) -> None:
    url, said = odd
    environment = client_of(url)
    await environment.areset(seed=0, options={"task": environment.tasks("train")[0]})
    said["step"] = step
    with pytest.raises(EnvironmentFailure):
        await environment.astep(STEP)


async def test_calls_of_many_episodes_go_in_one_request(odd: tuple[str, dict[str, Any]]) -> None:
    url, said = odd
    client = SimulatorClient(url, simulators=8, timeout_s=5)
    await asyncio.gather(*(client.begin(str(i), {"episode_id": i}) for i in range(8)))
    said["step"] = far(2.0)
    await asyncio.gather(*(client.step(str(i), "stop") for i in range(8)))
    paths = [path for path, _ in said["requests"]]
    assert paths == ["/environments", "/batch/reset", "/batch/step"]


async def test_no_more_environments_are_asked_for_than_there_are_simulators(odd: tuple[str, dict[str, Any]]) -> None:
    client = SimulatorClient(odd[0], simulators=2, timeout_s=5)
    begun = [asyncio.create_task(client.begin(str(i), {})) for i in range(3)]
    await asyncio.wait(begun, timeout=0.3)
    assert sorted(task.done() for task in begun) == [False, True, True]
    await client.end("0")
    await asyncio.wait_for(asyncio.gather(*begun), timeout=5)


async def test_a_server_that_is_not_there_fails_the_episode() -> None:
    environment = client_of("http://127.0.0.1:9")
    with pytest.raises(BackendFailure, match="does not answer"):
        await environment.areset(seed=0, options={"task": environment.tasks("train")[0]})


def test_options_say_which_episodes() -> None:
    with pytest.raises(ConfigError, match="train_ids or episodes"):
        Navigation(world="http", http={"url": "http://x", "heldout_ids": (0, 1)})
    with pytest.raises(ConfigError, match="world=http goes with"):
        Navigation(world="http")
    environment = client_of("http://x")
    with pytest.raises(ConfigError, match="no expert"):
        environment.expert(environment.tasks("train")[0], 0)


def test_an_address_that_cannot_be_listened_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="Choose another --port"):
        serve(NavigationOptions(**HOUSES), "203.0.113.7", port=5001, simulators=1)
