"""The code environment in whole rollouts, through a shared sandbox, and over sets of one's own."""

import asyncio
import json
from typing import Any

from agentflow.cli import main
from agentflow.environment_check import validate_answers
from agentflow.environments.coding import Code
from agentflow.messages import Message, ToolCall
from agentflow.runs import StoredRun
from agentflow.sandbox.shared import SharedSandbox
from tests.trusted_sandbox import LIMITS, TrustedSubprocess, real_process

SMALL: dict[str, Any] = {"train_tasks": 12, "heldout_tasks": 6, "limits": LIMITS.model_dump()}
SHARED = SharedSandbox(TrustedSubprocess)


class Trusted(Code):
    """The code environment over the tests' own sandbox."""

    def make_sandbox(self):
        """Return a sandbox for trusted programs, which lives in a loop of its own."""
        return SHARED


def solved(environment, task):
    """Play a task by the expert through the synchronous interface."""
    observation, _ = environment.reset(seed=0, options={"task": task})
    expert = environment.expert(task, 0)
    while True:
        observation, _, terminated, _, info = environment.step(expert.act(observation))
        if terminated:
            return info["success"]


def test_every_gold_answer_solves_its_task():
    report = validate_answers(Trusted, "heldout", **SMALL)
    assert (report.num_answers + report.num_played, report.num_unknown, report.failing) == (6, 0, {})


async def test_episodes_share_a_sandbox_across_loops():
    environments = [Trusted(**SMALL) for _ in range(4)]
    tasks = environments[0].tasks("train")
    found = await asyncio.gather(
        *(asyncio.to_thread(solved, environment, tasks[i]) for i, environment in enumerate(environments))
    )
    assert found == [True] * 4


def test_a_set_of_ones_own_is_played(tmp_path):
    file = tmp_path / "apps.jsonl"
    rows = [
        {
            "problem_id": number,
            "question": f"Read two numbers and write their sum, number {number}.",
            "input_output": json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}),
            "solutions": json.dumps(["print(sum(map(int, input().split())))"]),
        }
        for number in range(2)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = Trusted(programs={"path": str(file), "heldout_path": str(file), "style": "apps"})
    task = environment.tasks("train")[0]
    assert solved(environment, task)
    environment.reset(seed=0, options={"task": task})
    wrong = Message("assistant", tool_calls=(ToolCall("run", {"code": "print(input())"}),))
    (told,), *_ = environment.step(wrong)
    assert told.content == "With the input '1 2\\n' gives '1 2\\n', not '3\\n'."
    *_, info = environment.step(Message("assistant", "print(3)"))
    assert info["reward_terms"]["tests"] == 0.5 and not info["success"]


@real_process
def test_the_real_sandbox_plays_every_gold_answer():
    report = validate_answers(Code, "heldout", train_tasks=12, heldout_tasks=24)
    assert (report.num_answers + report.num_played, report.failing) == (24, {})


def test_the_code_starter_trains_and_is_evaluated(tmp_path):
    words = ["train", "--env", f"{__file__}:Trusted", "--model", "starter-code", "--out", str(tmp_path)]
    sizes = [
        "run.tasks_per_iteration=3",
        "run.group_size=4",
        "evaluation.num_tasks=6",
        "algorithm.keep.has_signal.drop=false",
    ]
    assert main([*words, *sizes, "--iterations", "1", "env.train_tasks=12", "env.heldout_tasks=6"]) == 0
    (run,) = (StoredRun(path) for path in tmp_path.iterdir())
    (trajectories,) = [[t for group in run.groups(i) for t in group.trajectories] for i in run.rollout_iterations()]
    assert len(trajectories) == 12
    replies = [turn.reply for trajectory in trajectories for turn in trajectory.turns]
    assert sum(not reply.error for reply in replies) > 0.7 * len(replies)
    assert any(trajectory.success for trajectory in trajectories)
