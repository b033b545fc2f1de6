"""Several policies, threads and children at once in every episode: what is decoded depends on the seed alone."""

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

from agentflow.agents.react import react
from agentflow.environments import ToolEnvironment
from agentflow.messages import Message, ToolCall
from agentflow.play import AgentConfig, EpisodePlayer, Play, Scene
from agentflow.policies.in_process import TransformersPolicy
from agentflow.renderer import Renderer
from agentflow.rollout import Rollout, RolloutConfig
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.speakers import TokenSpeaker
from agentflow.tools.tool import tool
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trajectory import Completion, Task

TOKENIZER = new_tokenizer([" look waited worked"], max_words=10)
SHAPE = ScratchConfig(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_key_value_heads=2)
PAUSES = random.Random()
"""Not seeded on purpose: tools take another time in each run."""


def pause_s() -> float:
    return PAUSES.choice([0.0, 0.001, 0.01])


class Erratic(ToolEnvironment):
    """Whatever the policy says, a tool is called that takes its time: one that waits, or one that holds a thread."""

    def tasks(self, split: str) -> list[Task]:
        return []

    @tool
    async def wait(self) -> str:
        """Wait in the event loop."""
        if PAUSES.random() < 0.5:  # what is in a cache is answered at once
            await asyncio.sleep(pause_s())
        return "waited"

    @tool
    def work(self) -> str:
        """Hold a thread."""
        time.sleep(pause_s())
        return "worked"

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        return {"success": 1.0}

    async def astep(self, action: Message) -> Any:
        name = "wait" if len(action.content) % 2 else "work"
        return await super().astep(Message("assistant", tool_calls=(ToolCall(name, {}),)))


async def busy(play: Play) -> None:
    """In each turn ask two roles at once, each with work of its own between two turns, while two children play."""
    heard = await play.reset()

    async def consult(role: str, *, grows: bool) -> int:
        thread = play.thread(role, grows=grows)
        reply = await play.ask(thread, heard)
        await asyncio.to_thread(time.sleep, pause_s())
        return len((await play.ask(thread, (Message("user", reply.message.content),))).message.content)

    while not play.over:
        reply = await play.ask(play.thread(), heard)
        delegated = [
            play.delegate(Task("child", "look"), react, call=n) for n in range(1 + len(reply.message.content) % 2)
        ]
        await play.together(consult("verifier", grows=False), consult("executor", grows=True), *delegated)
        heard = await play.act(reply)


def new_policy(seed: int, fed: list[list[int]]) -> TransformersPolicy:
    """Return an untrained policy that notes what each of its forward passes is fed."""
    model = new_model(TOKENIZER, SHAPE, seed=seed)
    use_agentflow_attention(model)
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].flatten().tolist()), with_kwargs=True
    )
    # It hardly ever says the one token that ends a turn, and a turn that was cut calls no tool.
    return TransformersPolicy(model, range(0, len(TOKENIZER), 3))


def decoded() -> tuple[list[list[list[int]]], dict[str, list[Completion]]]:
    """Return the tokens of each forward pass by policy, and what was said in each thread."""
    fed: list[list[list[int]]] = [[], []]
    planner, other = (new_policy(seed, fed[seed]) for seed in range(2))
    renderer = Renderer(TOKENIZER, Erratic().tool_schemas)
    config = AgentConfig(max_turns=2, max_turn_tokens=6)
    plays: list[Play] = []

    async def agent(play: Play) -> None:
        plays.append(play)
        await busy(play)

    by_planner, by_other = (TokenSpeaker(policy, renderer, config=config) for policy in (planner, other))
    speakers = {"planner": by_planner, "verifier": by_other, "executor": by_other}
    rollout = Rollout(
        EpisodePlayer(agent, Scene(Erratic, speakers, config)), RolloutConfig(concurrency=3, patience_s=60)
    )
    collected = rollout.run([Task(str(i), "look") for i in range(3)], group_size=2, seed=0, label="test")
    assert collected.num_unpunctual == 0
    assert all(trajectory.status.kind == "truncated" for trajectory in collected.trajectories), collected.trajectories
    plays += [child for play in plays for child in play.children]
    return fed, {thread.id: [turn.completion for turn in thread.turns] for play in plays for thread in play.threads}


def test_two_policies_with_threads_and_children_at_once_decode_alike_whenever_tools_answer() -> None:
    first_fed, first_said = decoded()
    assert all(first_fed)
    assert len(first_said) > 6 * (3 + 2)
    for _ in range(3):
        fed, said = decoded()
        assert said == first_said
        assert fed == first_fed
