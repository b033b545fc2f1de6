"""Gymnasium environments by their id."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from agentflow.environment import load_environment
from agentflow.environment_check import check_environment
from agentflow.environments.gymnasium_adapter import GymnasiumEnvironment, environment_class
from agentflow.environments.gymnasium_adapter.actions import argument_for, make_tool
from agentflow.environments.gymnasium_adapter.experts import best_actions
from agentflow.environments.gymnasium_adapter.grids import describe_grid
from agentflow.environments.gymnasium_adapter.observations import observer_for
from agentflow.errors import ConfigError, EnvironmentFailure, ToolError
from agentflow.messages import Message, ToolCall

SURE = {"make": {"is_slippery": False}, "train_tasks": 5, "heldout_tasks": 3}


def act(**arguments: Any) -> Message:
    return Message("assistant", tool_calls=(ToolCall("act", arguments),))


def begin(env_id: str, **options: Any) -> tuple[GymnasiumEnvironment, str]:
    environment = environment_class(env_id)(**options)
    observation, _ = environment.reset(seed=0, options={"task": environment.tasks("train")[0]})
    return environment, observation[-1].content


class Recorder(gymnasium.Env[Any, Any]):
    """Writes down in which thread it is used; it succeeds by its info."""

    metadata = {"render_modes": []}  # noqa: RUF012  as Gymnasium has it
    observation_space = spaces.Text(50)
    used_in: dict[int, set[int]] = {}  # noqa: RUF012

    def __init__(self, space: str = "discrete") -> None:
        self.action_space = {
            "discrete": spaces.Discrete(2, start=1),
            "tuple": spaces.Tuple((spaces.Discrete(2),)),
        }[space]
        self._note()

    def _note(self) -> None:
        self.used_in.setdefault(id(self), set()).add(threading.get_ident())

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._note()
        self.count = 0
        return f"seed {int(self.np_random.integers(1000))}", {}

    def step(self, action: Any) -> Any:
        self._note()
        assert action in (1, 2)
        self.count += int(action)
        return f"count {self.count}", -1.0, self.count >= 4, False, {"even": self.count % 2 == 0}

    def close(self) -> None:
        self._note()


gymnasium.register("agentflow-test/Recorder-v0", lambda **arguments: Recorder(**arguments))


@pytest.mark.parametrize(
    ("env_id", "options", "warnings"),
    [
        ("FrozenLake-v1", {}, ["One task", "Full marks"]),
        ("FrozenLake-v1", {**SURE, "actions_per_turn": 3}, ["One task"]),
        ("CliffWalking-v1", {}, ["One task"]),
        ("Taxi-v4", {"train_tasks": 3, "heldout_tasks": 2}, []),
        ("Blackjack-v1", {"train_tasks": 6, "heldout_tasks": 6}, ["1 of 6 held-out tasks", "Full marks"]),
        ("CartPole-v1", {}, ["Full marks"]),
        ("MiniGrid-Empty-5x5-v0", {}, ["One task", "Full marks"]),
        ("BabyAI-GoToLocal-v0", {"train_tasks": 20, "heldout_tasks": 5}, []),
        ("minigrid:BabyAI-GoToRedBallGrey-v0", {"train_tasks": 6, "heldout_tasks": 3, "actions_per_turn": 2}, []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_environments_keep_the_contract(env_id: str, options: dict[str, Any], warnings: list[str]) -> None:
    found = check_environment(load_environment(f"gymnasium:{env_id}"), **options)
    assert {finding.level for finding in found} <= {"warning"}
    assert [next((start for start in warnings if f.message.startswith(start)), f.message) for f in found] == warnings


def test_frozen_lake_is_played_by_words() -> None:
    environment, first = begin("FrozenLake-v1", **SURE)
    assert first == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert "left, down, right, up" in environment.instructions
    for action in ("down", "down", "right", "right"):
        *_, over, _, info = environment.step(act(action=action))
        assert not over and info["reward_terms"] == {"valid_call": 1.0, "return": 0.0, "success": 0.0, "steps": 1.0}
    environment.step(act(action="down"))
    (answer,), reward, over, _, info = environment.step(act(action="right"))
    assert answer.content.splitlines()[-1] == "HFF[G]"
    assert (reward, over, info["success"], info["reward_terms"]["return"]) == (1.0, True, True, 1.0)
    with pytest.raises(EnvironmentFailure):
        environment.step(act(action="left"))


def test_a_hole_is_no_success_and_an_answer_gives_up() -> None:
    environment, _ = begin("FrozenLake-v1", **SURE, actions_per_turn=4)
    _, reward, over, _, info = environment.step(act(actions=["right", "down", "left"]))
    assert (reward, over, info["success"], info["reward_terms"]["steps"]) == (0.0, True, False, 2.0)
    environment, _ = begin("FrozenLake-v1", **SURE)
    _, reward, over, _, info = environment.step(Message("assistant", "I give up."))
    assert (reward, over, info["success"]) == (0.0, True, False)


def test_wrong_actions_are_answered() -> None:
    environment, _ = begin("FrozenLake-v1", **SURE)
    (answer,), _, over, _, info = environment.step(act(action="north"))
    assert "'left', 'down', 'right' or 'up'" in answer.content and not over
    assert info["reward_terms"]["valid_call"] == 0 and info["reward_terms"]["steps"] == 0


def test_who_must_hold_out_has_solved_it_at_the_time_limit() -> None:
    environment, _ = begin("CartPole-v1", max_steps=10, success_return=10.0, actions_per_turn=5)
    assert environment.max_turns == 2
    _, reward, over, truncated, _ = environment.step(act(actions=["left", "right", "left", "right", "left"]))
    assert (reward, over, truncated) == (5.0, False, False)
    _, reward, over, _, info = environment.step(act(actions=["right", "left", "right", "left", "right"]))
    assert (reward, over, info["success"]) == (5.0, True, True)
    environment, _ = begin("CartPole-v1", max_steps=3, actions_per_turn=3)
    _, _, over, truncated, info = environment.step(act(actions=["left", "right", "left"]))
    assert (over, truncated) == (False, True)


def test_the_time_limit_is_the_environments_own_or_a_hundred() -> None:
    limits = {name: environment_class(name)().max_turns for name in ("FrozenLake-v1", "CliffWalking-v1")}
    assert limits == {"FrozenLake-v1": 100, "CliffWalking-v1": 100}
    assert environment_class("BabyAI-GoToLocal-v0")(actions_per_turn=10).max_turns == 7


def test_success_by_a_key_of_info_and_by_a_function(tmp_path: Path) -> None:
    environment, _ = begin("agentflow-test/Recorder-v0", success_key="even")
    environment.step(act(action=2))
    *_, over, _, info = environment.step(act(action=2))
    assert over and info["success"]
    file = tmp_path / "mine.py"
    file.write_text("def solved(total, info): return total == -3.0\ndef observe(obs, info, env): return obs.upper()\n")
    environment, first = begin("agentflow-test/Recorder-v0", success=f"{file}:solved", observe=f"{file}:observe")
    assert first.startswith("SEED")
    assert [environment.step(act(action=n))[4].get("success") for n in (1, 1, 2)] == [None, None, True]
    with pytest.raises(ConfigError, match=r"no function 'solve'.*Did you mean 'solved'"):
        begin("agentflow-test/Recorder-v0", success=f"{file}:solve")
    with pytest.raises(ConfigError, match=r"env\.observe = 'observe' names no function"):
        begin("agentflow-test/Recorder-v0", observe="observe")


def test_seeds_are_tasks() -> None:
    environment = environment_class("agentflow-test/Recorder-v0")(train_tasks=4, heldout_tasks=4)
    said = [
        environment.reset(seed=seed, options={"task": task})[0][-1].content
        for split in ("train", "heldout")
        for task in environment.tasks(split)
        for seed in (0, 1)
    ]
    assert said[::2] == said[1::2] and len(set(said)) == 8


@pytest.mark.parametrize("thread", ["own", "shared"])
async def test_an_environment_lives_in_one_thread(thread: str) -> None:
    Recorder.used_in.clear()
    made = [environment_class("agentflow-test/Recorder-v0")(thread=thread) for _ in range(3)]
    Recorder.used_in.clear()  # what was made to look at the spaces

    async def play(environment: GymnasiumEnvironment) -> None:
        await environment.areset(seed=0)
        for _ in range(3):
            await environment.astep(act(action=1))
        await asyncio.to_thread(environment.close)

    await asyncio.gather(*map(play, made))
    assert len(Recorder.used_in) == 3 and all(len(threads) == 1 for threads in Recorder.used_in.values())
    threads = set.union(*Recorder.used_in.values())
    assert len(threads) == (3 if thread == "own" else 1) and threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("space", "given", "read"),
    [
        (spaces.Discrete(3, start=-1), {"action": 1}, 1),
        (spaces.MultiDiscrete([2, 3]), {"action": [1, 2]}, [1, 2]),
        (spaces.MultiBinary(2), {"action": [1, 0]}, [1, 0]),
        (spaces.Box(-1.0, 1.0, (2,)), {"action": [0.5, 7]}, [0.5, 1.0]),
        (spaces.Text(5, charset="ab"), {"action": "abba"}, "abba"),
        (
            spaces.Dict(go=spaces.Discrete(2), say=spaces.Text(9)),
            {"go": 1, "say": "hi"},
            {"go": 1, "say": "hi"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, spaces.Space) else "",
)
async def test_actions_of_each_space(space: spaces.Space[Any], given: dict[str, Any], read: Any) -> None:
    done: list[Any] = []

    async def carry_out(actions: list[Any]) -> str:
        done.extend(actions)
        return "done"

    made = make_tool(space, (), most=1, act=carry_out)
    assert all(described["description"] for described in made.parameters["properties"].values())
    assert await made.call(given) == "done"
    assert np.array_equal(done[0], read) if not isinstance(read, dict) else done[0] == read
    assert space.contains(done[0])


@pytest.mark.parametrize(
    ("space", "value", "said"),
    [
        (spaces.MultiDiscrete([2, 3]), [1, 3], "out of range: 0 to 1; 0 to 2"),
        (spaces.Text(5, charset="ab"), "abc", "may not hold 'c'"),
        (spaces.Text(3, charset="ab"), "abba", "it has 4 letters"),
    ],
    ids=["range", "letters", "length"],
)
def test_values_outside_a_space_are_refused_in_words(space: spaces.Space[Any], value: Any, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        argument_for(space).read(value)


def test_spaces_that_cannot_be_written_are_refused_at_construction() -> None:
    with pytest.raises(ConfigError, match=r"action space Tuple.*cannot be written.*Wrap the environment"):
        begin("agentflow-test/Recorder-v0", make={"space": "tuple"})
    with pytest.raises(ConfigError, match=r"Several actions a turn"):
        begin("Pendulum-v1", actions_per_turn=2)
    with pytest.raises(ConfigError, match="3 action names for 4"):
        begin("FrozenLake-v1", action_names=("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"64, 64, 3.*env\.observe"):
        observer_for(spaces.Box(0, 255, (64, 64, 3), np.uint8), ["rgb_array"])
    with pytest.raises(ConfigError, match=r"64 numbers.*env\.observe"):
        observer_for(spaces.Box(-1, 1, (65,)), [])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gymnasium:Frozenlake-v1", "Did you mean 'FrozenLake-v1'"),
        ("gymnasium:no_such_package:Thing-v0", "pip install no_such_package"),
        ("gymnasium:FrozenLake-v9", "FrozenLake"),
    ],
)
def test_unknown_ids_are_refused_with_a_remedy(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_environment(spec)


def test_an_environment_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot make 'FrozenLake-v1'"):
        begin("FrozenLake-v1", make={"no_such_argument": 1})


def test_numbers_are_json() -> None:
    _, first = begin("CartPole-v1")
    assert len(first.strip("[]").split(", ")) == 4
    _, first = begin("Blackjack-v1", train_tasks=1)
    assert first.startswith("[") and first.count(",") == 2


def test_the_best_actions_of_a_lake_lead_to_the_goal() -> None:
    env: Any = gymnasium.make("FrozenLake-v1", is_slippery=False).unwrapped
    env.reset(seed=0)
    best = best_actions(env.P)
    steps = 0
    over = False
    while not over:
        _, reward, over, *_ = env.step(int(best[env.s]))
        steps += 1
    assert (steps, reward) == (6, 1)


def expert_solves(environment: GymnasiumEnvironment, *, number: int, most_turns: int) -> bool:
    """Let the expert play a training task."""
    task = environment.tasks("train")[number]
    observation, _ = environment.reset(seed=number, options={"task": task})
    expert = environment.expert(task, number)
    for _ in range(most_turns):
        observation, _, over, _, info = environment.step(expert.act(observation))
        if over:
            return bool(info["success"])
    return False


def test_experts_solve_their_levels_and_noise_spoils_them() -> None:
    make = environment_class("BabyAI-GoToRedBallGrey-v0")
    clean, noisy = make(train_tasks=20), make(train_tasks=20, expert_noise=0.5)
    assert all(expert_solves(clean, number=i, most_turns=clean.max_turns) for i in range(20))
    assert sum(expert_solves(noisy, number=i, most_turns=20) for i in range(20)) < 18
    with pytest.raises(ConfigError, match="No expert ships with CartPole-v1"):
        environment_class("CartPole-v1")().expert(clean.tasks("train")[0], 0)


def test_a_grid_is_told_from_where_the_agent_stands() -> None:
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    image[..., 0] = 1
    image[3, 4] = (6, 0, 0)  # a red ball two ahead
    image[1, 6] = (4, 4, 2)  # a locked yellow door two to the left
    image[5, 1] = (8, 1, 0)
    image[3, 6] = (5, 2, 0)  # carried
    assert describe_grid(image) == (
        "carrying blue key; locked yellow door left 2; red ball ahead 2; goal ahead 5 right 2; free ahead 1"
    )
