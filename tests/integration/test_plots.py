"""A plot's way: drawn in the sandbox, read by the policy as a line, stored, and seen on the page."""

from functools import cached_property
from pathlib import Path

from agentflow.config import Config
from agentflow.environments import ToolEnvironment
from agentflow.messages import Message, ToolCall
from agentflow.policy import ScriptedPolicy
from agentflow.renderer import Renderer
from agentflow.rollout import Rollout, RolloutConfig
from agentflow.runs import Run
from agentflow.sandbox.process.backend import ProcessSandbox
from agentflow.sandbox.shared import SharedSandbox
from agentflow.tools.python import python_tool
from agentflow.trainers.scratch import new_tokenizer
from agentflow.trajectory import Task
from agentflow.view.report import render_report
from tests.players import policy_player
from tests.trusted_sandbox import real_process

PLOT = "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1)).subplots().plot([1, 4, 9])\nplt.show()\n6 * 7"
LINE = "42\n[image 1: image/png, 200x100]"
SHARED = SharedSandbox(lambda: ProcessSandbox(1))


class Drawing(ToolEnvironment):
    """Counts as solved what is answered."""

    def tasks(self, split):
        return [Task("draw", "draw it", "done")]

    def score(self, task, answer):
        return {"success": float(answer == task.answer)}

    @cached_property
    def tools(self):
        return {"python": python_tool(SHARED)}


@real_process
def test_a_plot_is_a_line_to_the_policy_and_a_picture_on_the_page(tmp_path: Path) -> None:
    renderer = Renderer(new_tokenizer([f"{PLOT} {LINE} done draw it"], max_words=100), Drawing().tool_schemas)
    prompts: list[str] = []

    def script(prompt):
        prompts.append(str(renderer.tokenizer.decode(prompt)))
        call = Message("assistant", tool_calls=(ToolCall("python", {"code": PLOT}),))
        return renderer.reply(call if len(prompts) == 1 else Message("assistant", "done"))

    agent = policy_player(Drawing, renderer, policy=ScriptedPolicy(script))
    groups = Rollout(agent, RolloutConfig()).run(Drawing().tasks("train"), group_size=1, seed=0, label="test").groups
    (trajectory,) = groups[0].trajectories
    assert trajectory.success, trajectory.status
    assert LINE in prompts[1]

    (shown,) = trajectory.turns[1].messages
    (image,) = shown.images
    assert (shown.content, image.size) == ("42", (200, 100))
    assert list(trajectory.turns[1].context_ids) == list(renderer.extend([shown]))

    run = Run.create(tmp_path, config=Config(), env="drawing", model="m", seed=0, tensorboard=False)
    run.write_groups(0, groups)
    assert list(run.groups(0)) == list(groups)
    assert image.url in render_report(run)
