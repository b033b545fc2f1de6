"""Connectivity graphs with episodes of R2R, RxR and VLN-CE, written here in the published formats."""

import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from agentflow.environment_check import check_environment
from agentflow.environments.navigation import Navigation
from agentflow.environments.navigation.episodes import read_episodes, read_locations
from agentflow.environments.navigation.graph import load_graph
from agentflow.errors import ConfigError, DataError
from agentflow.messages import Message, Reply, ToolCall
from agentflow.trajectory import Completion, Status, Trajectory, Turn

# Two rows of three viewpoints, 2 m apart, and one that is left out of the graph.
PLACES = {"a": (0, 0), "b": (2, 0), "c": (4, 0), "d": (0, 2), "e": (2, 2), "f": (4, 2), "x": (9, 9)}
EDGES = ["ab", "bc", "ad", "be", "ef", "cx"]


def connectivity() -> list[dict[str, Any]]:
    names = list(PLACES)
    rows = []
    for name, (x, y) in PLACES.items():
        pose = [1.0, 0, 0, x, 0, 1.0, 0, y, 0, 0, 1.0, 1.5, 0, 0, 0, 1.0]
        joined = [f"{name}{other}" in EDGES or f"{other}{name}" in EDGES for other in names]
        rows.append(
            {
                "image_id": name,
                "pose": pose,
                "included": name != "x",
                "visible": joined,
                "unobstructed": joined,
                "height": 1.5,
            }
        )
    return rows


R2R = [
    {
        "scan": "house",
        "path_id": 7,
        "path": ["a", "b", "e", "f"],
        "heading": math.pi / 2,
        "distance": 6.0,
        "instructions": ["Walk on, left, right.", "Go to the far corner. "],
    }
]
RXR = [
    {
        "scan": "house",
        "path_id": 8,
        "path": ["d", "a"],
        "heading": 0.0,
        "instruction_id": 21,
        "language": language,
        "instruction": "Turn round.",
        "annotator_id": 1,
    }
    for language in ("en-US",)
] + [
    {
        "scan": "house",
        "path_id": 8,
        "path": ["d", "a"],
        "heading": 0,
        "instruction_id": 22,
        "language": "hi-IN",
        "instruction": "Mudo.",
    }
]
# Habitat's axes: y upwards, and z against Matterport's y. Unturned, one looks along -z.
VLNCE = {
    "episodes": [
        {
            "episode_id": 5,
            "trajectory_id": 2,
            "scene_id": "data/scene_datasets/mp3d/house/house.glb",
            "start_position": [0.1, 0.0, -0.1],
            "start_rotation": [0.0, -math.sin(math.pi / 4), 0.0, math.cos(math.pi / 4)],
            "info": {"geodesic_distance": 6.2},
            "goals": [{"position": [3.9, 0.0, -2.2], "radius": 3.0}],
            "reference_path": [[0.1, 0.0, -0.1], [2.0, 0.1, 0.0], [3.9, 0.0, -2.2]],
            "instruction": {"instruction_text": "Walk on.", "instruction_tokens": [1, 2]},
        }
    ],
    "instruction_vocab": {"word_list": ["walk", "on"]},
}


@pytest.fixture(name="folder")
def write(tmp_path: Path) -> Path:
    (tmp_path / "house_connectivity.json").write_text(json.dumps(connectivity()))
    (tmp_path / "r2r.json").write_text(json.dumps(R2R))
    (tmp_path / "rxr.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, RXR)).encode()))
    (tmp_path / "vlnce.json.gz").write_bytes(gzip.compress(json.dumps(VLNCE).encode()))
    (tmp_path / "gt.json.gz").write_bytes(gzip.compress(json.dumps({"5": {"locations": [[1, 2, -3]]}}).encode()))
    return tmp_path


def make(folder: Path, file: str, **graph: Any) -> Navigation:
    named = {"connectivity": str(folder), "episodes": str(folder / file), "heldout_episodes": str(folder / file)}
    return Navigation(world="graph", graph={**named, **graph})


def go(to: int) -> Message:
    return Message("assistant", tool_calls=(ToolCall("go", {"to": to}),))


STOP = Message("assistant", tool_calls=(ToolCall("stop"),))


def test_a_graph_keeps_what_is_included(folder: Path) -> None:
    graph = load_graph(str(folder), "house")
    assert sorted(graph.positions) == list("abcdef")
    assert {name: sorted(graph.neighbours[name]) for name in "abc"} == {
        "a": ["b", "d"],
        "b": ["a", "c", "e"],
        "c": ["b"],
    }
    assert graph.distances_to("f") == {"f": 0.0, "e": 2.0, "b": 4.0, "a": 6.0, "c": 6.0, "d": 8.0}
    viewpoint, distance = graph.nearest((2.2, 0.1, 0.0))
    assert viewpoint == "b" and distance == pytest.approx(math.hypot(0.2, 0.1))


def test_each_instruction_of_r2r_is_an_episode(folder: Path) -> None:
    one, two = read_episodes(folder / "r2r.json")
    assert (one.id, two.id, two.instruction) == ("7_0", "7_1", "Go to the far corner.")
    assert one.viewpoints == ("a", "b", "e", "f") and one.length == 6.0 and one.language == "en"


def test_rxr_is_read_with_its_languages(folder: Path) -> None:
    assert [(each.id, each.language) for each in read_episodes(folder / "rxr.jsonl.gz")] == [
        ("8_21", "en-US"),
        ("8_22", "hi-IN"),
    ]
    assert [task.prompt for task in make(folder, "rxr.jsonl.gz", languages=["hi-IN"]).tasks("train")] == ["Mudo."]
    with pytest.raises(DataError, match="no episode in te-IN, only en-US, hi-IN"):
        make(folder, "rxr.jsonl.gz", languages=["te-IN"]).tasks("train")


def test_vlnce_is_turned_into_matterports_axes(folder: Path) -> None:
    (episode,) = read_episodes(folder / "vlnce.json.gz")
    assert (episode.id, episode.scan, episode.length) == ("5", "house", 6.2)
    assert episode.positions[0] == (0.1, 0.1, 0.0) and episode.positions[-1] == (3.9, 2.2, 0.0)
    assert episode.heading == pytest.approx(math.pi / 2), "a quarter turn to the right, to the east"
    (task,) = make(folder, "vlnce.json.gz").tasks("train")
    assert task.answer["path"] == ["a", "b", "e", "f"], (
        "positions lie on the nearest viewpoints, joined by shortest ways"
    )
    assert read_locations(folder / "gt.json.gz") == {"5": [(1.0, 3.0, 2.0)]}


def test_the_environment_keeps_its_contract(folder: Path) -> None:
    named = {"connectivity": str(folder), "episodes": str(folder / "r2r.json")}
    found = check_environment(
        Navigation, world="graph", graph={**named, "heldout_episodes": str(folder / "vlnce.json.gz")}
    )
    assert found == []


@pytest.mark.parametrize("file", ["r2r.json", "rxr.jsonl.gz", "vlnce.json.gz"])
def test_the_expert_follows_the_path(folder: Path, file: str) -> None:
    environment = make(folder, file)
    for task in environment.tasks("train"):
        observation, _ = environment.reset(seed=0, options={"task": task})
        expert, over, sums = environment.expert(task, 0), False, dict[str, float]()
        while not over:
            observation, _, over, _, info = environment.step(expert.act(observation))
            sums = {name: sums.get(name, 0.0) + value for name, value in info["reward_terms"].items()}
        assert info["success"]
        assert [sums[name] for name in ("spl", "ndtw", "navigation_error", "soft_success")] == pytest.approx(
            [1, 1, 0, 1]
        )


def test_ways_are_told_from_where_one_looks_and_taken_by_their_number(folder: Path) -> None:
    environment = make(folder, "r2r.json", descriptions=str(folder / "seen.json"))
    (folder / "seen.json").write_text(json.dumps({"house": {"b": "A landing."}}))
    task = environment.tasks("train")[0]
    (_, asked), _ = environment.reset(seed=0, options={"task": task})
    assert asked.content == "Walk on, left, right.\n1 left 90 2.0; 2 ahead 2.0"
    (answer,), *_ = environment.step(go(2))
    assert answer.content == "A landing.\n1 behind 2.0; 2 left 90 2.0; 3 ahead 2.0"
    (answer,), *_, info = environment.step(go(9))
    assert answer.content == "Error: no way '9': 1 to 3" and info["reward_terms"]["format"] == -1.0
    _, reward, over, _, info = environment.step(STOP)
    assert (reward, over, info["success"]) == (0.0, True, False)


def test_stopping_within_the_radius_succeeds_and_detours_cost_spl(folder: Path) -> None:
    environment = make(folder, "r2r.json")
    environment.reset(seed=0, options={"task": environment.tasks("train")[0]})
    sums: dict[str, float] = {}
    # b, c, b, e: 8 m, and 2 m from the goal.
    for action in (go(2), go(3), go(1), go(3), STOP):
        *_, info = environment.step(action)
        sums = {name: sums.get(name, 0.0) + value for name, value in info["reward_terms"].items()}
    assert sums["success"] == 1.0 and sums["navigation_error"] == pytest.approx(2.0)
    assert sums["spl"] == pytest.approx(6 / 8) and sums["soft_success"] == pytest.approx(1 / 3)


def test_a_picture_shows_both_ways(folder: Path) -> None:
    environment = make(folder, "r2r.json")
    task = environment.tasks("train")[0]
    said = [go(2), go(9), go(2), STOP]
    turns = tuple(Turn(0, (), Completion((1,), (0.0,), "stop", 0), (), Reply(each)) for each in said)
    svg = environment.picture(Trajectory("0/x/0", task.id, 0, turns, Status("completed"), success=False))
    assert svg is not None
    lines = list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len((line.get("points") or "").split()) for line in lines[-2:]] == [4, 3]


def broken(change: Any) -> str:
    content = copy.deepcopy(change[0])
    change[1](content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[2].pop("pose"), "viewpoint 2 has no 'pose'"),
        (lambda rows: rows[1]["pose"].pop(), "viewpoint 1: the pose has 15 entries"),
        (lambda rows: rows[0]["unobstructed"].pop(), "viewpoint 0: 'unobstructed' has 6 entries for 7"),
        (lambda rows: rows[0].update(included="yes"), "'included' is 'yes'"),
        (lambda rows: [row.update(included=False) for row in rows], "includes no viewpoint"),
    ],
)
def test_broken_graphs_are_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    (tmp_path / "house_connectivity.json").write_text(broken((connectivity(), change)))
    with pytest.raises(DataError, match=said):
        load_graph(str(tmp_path), "house")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "holds no list of episodes"),
        ("a.json", "[]", "has no episode"),
        ("a.json", "[3]", "episode 0 is '3'"),
        ("a.json", broken((R2R, lambda rows: rows[0].pop("heading"))), "episode 0 has no 'heading'"),
        ("a.json", broken((R2R, lambda rows: rows[0].update(path=[1]))), "'path' is no list of viewpoints"),
        ("a.json", broken((R2R, lambda rows: rows[0].update(instructions=[" "]))), "has no instruction"),
        ("a.json", broken((R2R, lambda rows: rows.append(rows[0]))), "two episodes '7_0'"),
        ("a.json", broken((VLNCE, lambda rows: rows["episodes"][0]["goals"].clear())), "episode 0 has no goal"),
        ("a.json", broken((VLNCE, lambda rows: rows["episodes"][0].pop("start_rotation"))), "no 'start_rotation'"),
        ("a.json", broken((VLNCE, lambda rows: rows["episodes"][0].update(start_position=[1, 2]))), "three numbers"),
        ("a.json.gz", "\x1f", "is not JSON"),
    ],
)  # fmt: skip
def test_broken_episodes_are_refused_by_name(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_episodes(tmp_path / name)


def test_episodes_that_do_not_fit_their_graphs_are_refused(folder: Path) -> None:
    for change, said in (
        (lambda rows: rows[0]["path"].append("x"), "no viewpoint 'x'"),
        (lambda rows: rows[0].update(path=["a", "c"]), "no way from 'a' to 'c'"),
        (lambda rows: rows[0].update(scan="hose"), "Did you mean 'house'"),
    ):
        (folder / f"{said[:3]}.json").write_text(broken((R2R, change)))
        with pytest.raises(DataError, match=said):
            make(folder, f"{said[:3]}.json").tasks("train")
    far = broken((VLNCE, lambda rows: rows["episodes"][0]["goals"][0].update(position=[30, 0, 0])))
    (folder / "far.json").write_text(far)
    with pytest.raises(DataError, match=r"26\.0 m away"):
        make(folder, "far.json").tasks("train")
    with pytest.raises(DataError, match="too few buildings"):
        make(folder, "r2r.json", heldout_episodes=None).tasks("heldout")


def test_the_world_and_its_options_go_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="world=graph goes with"):
        Navigation(world="graph")
    with pytest.raises(ConfigError, match="world=graph goes with"):
        Navigation(graph={"connectivity": str(folder), "episodes": "r2r.json"})
