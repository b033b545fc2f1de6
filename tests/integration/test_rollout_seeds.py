"""What the members of a group share, what they do not, and that only the seed decides it."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from agentflow.environments import ToolEnvironment
from agentflow.messages import Message, ToolCall
from agentflow.play import AgentConfig
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policy import Sampling, ScriptedPolicy
from agentflow.renderer import Renderer
from agentflow.rollout import Rollout, RolloutConfig
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.tools.tool import tool
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trajectory import Completion, Task
from tests.players import policy_player


class Seeded(ToolEnvironment):
    """Remembers the seeds of its episodes."""

    seeds: list[int] = []  # noqa: RUF012  shared by the instances on purpose

    def tasks(self, split: str) -> list[Task]:
        return []

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        return {"success": 1.0}

    async def areset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seeds.append(seed or 0)
        return await super().areset(seed=seed, options=options)


class Recording(ScriptedPolicy):
    """Remembers the seeds that it is asked to sample with."""

    sampled: list[int] = []  # noqa: RUF012  read after the rollout

    async def generate(self, prompt_ids: Any, sampling: Sampling, *, session: str) -> Completion:
        self.sampled.append(sampling.seed)
        return await super().generate(prompt_ids, sampling, session=session)


def test_members_of_a_group_share_the_environments_seed_and_not_the_samplers() -> None:
    renderer = Renderer(new_tokenizer([" fine look"], max_words=10))
    policy = Recording(lambda _: renderer.reply(Message("assistant", "fine")))
    agent = policy_player(Seeded, renderer, policy=policy)
    tasks = [Task("one", "look", "fine"), Task("other", "look", "fine")]
    Rollout(agent, RolloutConfig()).run(tasks, group_size=3, seed=0, label="test")
    assert sorted(Counter(Seeded.seeds).values()) == [3, 3]
    assert len(set(policy.sampled)) == 6


class Erratic(ToolEnvironment):
    """Whatever the policy says, a tool is called that takes its time: one that waits, or one that holds a thread."""

    pauses = random.Random()

    def tasks(self, split: str) -> list[Task]:
        return []

    @tool
    async def wait(self) -> str:
        """Wait in the event loop."""
        await asyncio.sleep(self.pauses.choice([0.0, 0.001, 0.01]))
        return "waited"

    @tool
    def work(self) -> str:
        """Hold a thread."""
        time.sleep(self.pauses.choice([0.0, 0.001, 0.01]))
        return "worked"

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        return {"success": 1.0}

    async def astep(self, action: Message) -> Any:
        name = "wait" if len(action.content) % 2 else "work"
        return await super().astep(Message("assistant", tool_calls=(ToolCall(name, {}),)))


def test_more_episodes_than_run_at_once_are_decoded_alike_whenever_their_tools_answer() -> None:
    tokenizer = new_tokenizer([" look waited worked"], max_words=10)
    shape = ScratchConfig(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_key_value_heads=2)
    model = new_model(tokenizer, shape, seed=0)
    use_agentflow_attention(model)
    fed: list[list[int]] = []
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].flatten().tolist()), with_kwargs=True
    )
    renderer = Renderer(tokenizer, Erratic().tool_schemas)

    def decoded() -> tuple[list[list[int]], list[Completion]]:
        """Return the tokens of each forward pass, and what was said."""
        fed.clear()
        # An untrained policy hardly ever says the one token that ends a turn, and a turn that was cut calls no tool.
        policy = TransformersPolicy(model, range(0, len(tokenizer), 3))
        limits = AgentConfig(max_turns=3, max_turn_tokens=8)
        rollout = Rollout(
            policy_player(Erratic, renderer, policy=policy, config=limits), RolloutConfig(concurrency=4, patience_s=60)
        )
        tasks = [Task(str(i), "look") for i in range(8)]
        collected = rollout.run(tasks, group_size=3, seed=0, label="test")
        assert collected.num_unpunctual == 0
        turns = [turn for trajectory in collected.trajectories for turn in trajectory.turns]
        assert sum("valid_call" in turn.terms for turn in turns) > len(turns) / 2, "most turns call a tool"
        return list(fed), [turn.completion for turn in turns]

    first = decoded()
    assert all(decoded() == first for _ in range(2))
