"""What the members of a group share, and what they do not."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from agentflow.agents.react import AgentConfig, ReAct
from agentflow.environments import ToolEnvironment
from agentflow.messages import Message
from agentflow.policy import Sampling, ScriptedPolicy
from agentflow.renderer import Renderer
from agentflow.rollout import Rollout, RolloutConfig
from agentflow.trainers.scratch import new_tokenizer
from agentflow.trajectory import Completion, Task


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
    agent = ReAct(Seeded, renderer, policy=policy, config=AgentConfig())
    tasks = [Task("one", "look", "fine"), Task("other", "look", "fine")]
    Rollout(agent, RolloutConfig()).run(tasks, group_size=3, seed=0, label="test")
    assert sorted(Counter(Seeded.seeds).values()) == [3, 3]
    assert len(set(policy.sampled)) == 6
