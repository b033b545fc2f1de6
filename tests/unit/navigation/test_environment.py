"""The navigation environment, its courses and its expert."""

import asyncio
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from agentflow.environment import load_environment
from agentflow.environment_check import check_environment
from agentflow.environments.navigation import Navigation
from agentflow.environments.navigation.course import AXES, CourseConfig, course_of, draw_tasks
from agentflow.environments.navigation.expert import walk
from agentflow.environments.navigation.geodesic import Geodesics
from agentflow.environments.navigation.house import HouseConfig
from agentflow.environments.navigation.instructions import FAMILIES, num_phrasings
from agentflow.environments.navigation.names import THINGS, landmark_names
from agentflow.errors import ConfigError, EnvironmentFailure
from agentflow.messages import Message, Reply, ToolCall
from agentflow.trajectory import Completion, Status, Task, Trajectory, Turn

SMALL: dict[str, Any] = {"train_tasks": 60, "heldout_tasks": 40}


def say(actions: str) -> Message:
    return Message("assistant", tool_calls=(ToolCall("move", {"actions": actions}),))


async def play(
    environment: Navigation, task: Task, seed: int
) -> tuple[dict[str, float], dict[str, Any], list[Message]]:
    """Let the expert play; the sums of the terms, the last info, and what was said."""
    observation, _ = await environment.areset(seed=seed, options={"task": task})
    expert = environment.expert(task, seed)
    terms: dict[str, float] = {}
    info: dict[str, Any] = {}
    said = []
    for _ in range(environment.max_turns):
        said.append(expert.act(observation))
        observation, _, terminated, truncated, info = await environment.astep(said[-1])
        terms = {name: terms.get(name, 0.0) + value for name, value in info["reward_terms"].items()}
        if terminated or truncated:
            break
    return terms, info, said


def test_the_environment_keeps_its_contract() -> None:
    assert load_environment("navigation") is Navigation
    assert check_environment(Navigation, **SMALL, families=FAMILIES) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"families": FAMILIES},
        {"house": {"columns": 4, "rows": 3, "landmarks": 3, "loops": 0.0}, "doors": (2, 4)},
        {"house": {"columns": 2, "rows": 1, "room_size": 6.0}},
    ],
    ids=["default", "all families", "large", "two rooms"],
)
async def test_a_clean_expert_succeeds_in_a_hundred_of_a_hundred(options: dict[str, Any]) -> None:
    environment = Navigation(train_tasks=100, **options)
    environment.max_turns = 60
    for seed, task in enumerate(environment.tasks("train")):
        terms, info, _ = await play(environment, task, seed)
        assert info["success"] and terms["success"] == terms["oracle_success"] == terms["format"] == 1.0, task
        assert (terms["ndtw"], terms["sdtw"]) == pytest.approx((1.0, 1.0))
        assert terms["navigation_error"] <= 0.75 and 0.3 < terms["spl"] <= 1.0
        assert 0 <= terms["soft_success"] == pytest.approx(1 - terms["navigation_error"] / 0.75)


async def test_a_careless_expert_fails_as_often_as_it_is_told() -> None:
    shares = []
    for noise in (0.0, 0.5, 1.0):
        environment = Navigation(train_tasks=150, expert_noise=noise)
        played = [await play(environment, task, seed) for seed, task in enumerate(environment.tasks("train"))]
        shares.append(sum(info.get("success", False) for _, info, _ in played) / len(played))
    assert shares[0] == 1.0 and 0.55 < shares[1] < 0.8 and 0.2 < shares[2] < 0.5


def test_nothing_of_the_held_out_axes_occurs_in_training() -> None:
    config = CourseConfig(0, HouseConfig(), (1, 2, 3), FAMILIES)
    train, heldout = draw_tasks(config, "train", 400), draw_tasks(config, "heldout", 400)
    last = {family: num_phrasings(family) - 1 for family in FAMILIES}

    def phrased_anew(task: Task) -> bool:
        return bool(task.metadata["phrasing"] == last[task.metadata["family"]])

    held_out = set(landmark_names("heldout"))
    assert not any(phrased_anew(task) or task.answer["name"] in held_out for task in train)
    for axis in AXES:
        tasks = [task for task in heldout if task.metadata["unseen"] == axis]
        assert len(tasks) == 100
        assert all(phrased_anew(task) == (axis in ("phrasing", "all")) for task in tasks)
        assert all((task.answer["name"] in held_out) == (axis in ("landmark", "all")) for task in tasks)
    walls = {course_of(config, task).house.walls.tobytes() for task in train}
    assert not walls & {course_of(config, task).house.walls.tobytes() for task in heldout}


def test_held_out_phrasings_are_made_of_known_words() -> None:
    config = CourseConfig(0, HouseConfig(), (1, 2, 3), FAMILIES)
    known = {word for task in draw_tasks(config, "train", 1500) for word in task.prompt.replace(",", " ").split()}
    asked = {word for task in draw_tasks(config, "heldout", 400) for word in task.prompt.replace(",", " ").split()}
    assert asked <= known | {f"{thing}." for thing in THINGS} | set(THINGS)


def test_tasks_follow_their_options() -> None:
    environment = Navigation(doors=(2,), families=("goal",), seed=5, **SMALL)
    assert {task.metadata["doors"] for task in environment.tasks("train")} == {2}
    assert {task.metadata["family"] for task in environment.tasks("train")} == {"goal"}
    assert [task.prompt for task in Navigation(seed=5, **SMALL).tasks("train")] != [
        task.prompt for task in Navigation(seed=6, **SMALL).tasks("train")
    ]


def test_a_way_of_more_doors_than_a_house_has_is_as_long_as_it_can_be() -> None:
    environment = Navigation(doors=(9,), house={"columns": 2, "rows": 2}, **SMALL)
    assert {task.metadata["doors"] for task in environment.tasks("train")} <= {1, 2, 3}


def test_sides_are_those_of_the_walls() -> None:
    """The terse family's sides lead through the right doors: walked by the sides alone, the rooms are the same."""
    config = CourseConfig(3, HouseConfig(columns=4, rows=3), (3, 4), ("terse",))
    turned = {"ahead": 0, "left": 1, "behind": 2, "right": 3}
    offsets = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    for task in draw_tasks(config, "train", 60):
        course = course_of(config, task)
        house = course.house
        words = task.prompt.replace(",", " ").replace(":", " ").split()
        room = house.room_at(course.start.position)
        behind = next(house.rooms.index(word) for word in words if word in house.rooms)
        step = (behind % 4 - room % 4, behind // 4 - room // 4)
        room, facing = behind, offsets.index(step)
        for word in words:
            if word in turned:
                facing = (facing + turned[word]) % 4
                room += offsets[facing][0] + 4 * offsets[facing][1]
        assert room == house.landmarks[course.landmark].room, task.prompt


def test_relative_goals_are_a_metre_before_the_landmark() -> None:
    config = CourseConfig(0, HouseConfig(), (1, 2), ("relative",))
    for task in draw_tasks(config, "train", 30):
        course = course_of(config, task)
        landmark = course.house.landmarks[course.landmark].position
        assert Geodesics(course.house).to(landmark).distances([course.goal])[0] == pytest.approx(1.0, abs=1e-5)
        end = walk(course).positions[-1]
        assert Geodesics(course.house).to(course.goal).distances([end])[0] <= 0.75


@pytest.fixture(name="under_way")
def begin() -> Callable[..., tuple[Navigation, Task]]:
    def begin(**options: Any) -> tuple[Navigation, Task]:
        environment = Navigation(**SMALL, **options)
        task = environment.tasks("train")[0]
        environment.reset(seed=0, options={"task": task})
        return environment, task

    return begin


def test_the_first_message_tells_the_instruction_and_the_view() -> None:
    environment = Navigation(**SMALL)
    task = environment.tasks("train")[0]
    (system, asked), _ = environment.reset(seed=0, options={"task": task})
    assert "STOP" in system.content
    instruction, view = asked.content.split("\n")
    assert instruction == task.prompt and view.split(":")[0] in task.prompt


def test_an_episode_that_never_stops_still_has_its_measures(under_way: Any) -> None:
    environment, _ = under_way()
    sums: dict[str, float] = {}
    for _ in range(3):
        *_, info = environment.step(say("L"))
        sums = {name: sums.get(name, 0.0) + value for name, value in info["reward_terms"].items()}
    assert sums["navigation_error"] == pytest.approx(environment._walk.shortest)
    assert sums["success"] == sums["spl"] == sums["oracle_success"] == 0.0 and 0 < sums["ndtw"] < 1
    assert sums["actions"] == 3 and sums["format"] == 1


def test_what_cannot_be_read_is_answered_and_counted(under_way: Any) -> None:
    environment, _ = under_way()
    (answer,), _, over, _, info = environment.step(say("jump"))
    assert "no action 'JUMP'" in answer.content and not over
    assert info["reward_terms"]["format"] == 0.0
    (answer,), *_, info = environment.step(say("F"))
    assert info["reward_terms"]["format"] == 0.0 and ":" in answer.content


@pytest.mark.parametrize("action", [say("L STOP"), Message("assistant", "I am there.")], ids=["stop", "answer"])
def test_a_stop_far_from_the_goal_ends_the_episode_without_success(under_way: Any, action: Message) -> None:
    environment, _ = under_way()
    _, reward, terminated, truncated, info = environment.step(action)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["success"] is False and info["reward_terms"]["success"] == 0.0
    assert info["reward_terms"]["navigation_error"] > 0.75
    with pytest.raises(EnvironmentFailure):
        environment.step(say("F"))


def test_calls_behind_a_stop_are_refused(under_way: Any) -> None:
    environment, _ = under_way()
    calls = (*say("STOP").tool_calls, *say("F").tool_calls)
    _, _, terminated, _, info = environment.step(Message("assistant", tool_calls=calls))
    assert terminated and info["reward_terms"]["actions"] == 1 and info["reward_terms"]["format"] == 0


def test_actions_are_used_up_by_the_experts_in_training_and_by_a_fixed_number_held_out() -> None:
    environment = Navigation(**SMALL, budget_factor=2.0, max_actions=40)
    environment.max_turns = 99
    for split, task in (("train", environment.tasks("train")[0]), ("heldout", environment.tasks("heldout")[0])):
        environment.reset(seed=0, options={"task": task})
        expert = walk(course_of(CourseConfig(0, HouseConfig(), (1, 2, 3), ("route",)), task)).num_actions
        turns = 0
        truncated = False
        while not truncated:
            _, _, terminated, truncated, _ = environment.step(say("L"))
            assert not terminated
            turns += 1
        assert turns == (2 * expert if split == "train" else 40)
        with pytest.raises(EnvironmentFailure):
            environment.step(say("L"))


def test_a_house_of_one_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="one room"):
        Navigation(house={"columns": 1, "rows": 1})


def test_a_picture_shows_both_ways() -> None:
    environment = Navigation(**SMALL)
    task = environment.tasks("train")[3]
    terms, info, said = asyncio.run(play(environment, task, 0))
    assert info["success"] and terms["success"]
    completion = Completion((1,), (0.0,), "stop", 0)
    turns = tuple(Turn(0, (), completion, (), Reply(message)) for message in (say("nonsense"), *said))
    trajectory = Trajectory("0/x/0", task.id, 0, turns, Status("completed"), success=True)
    svg = environment.picture(trajectory)
    assert svg is not None
    root = ElementTree.fromstring(svg)
    lines = [line for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    expert, walked = lines[-2:]
    assert expert.get("stroke-dasharray") and not walked.get("stroke-dasharray")
    assert expert.get("points") == walked.get("points")
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert task.answer["name"] in texts


def test_other_environments_have_no_picture() -> None:
    environment = load_environment("reading")()
    assert environment.picture(Trajectory("0/x/0", "x", 0, (), Status("completed"), success=True)) is None
