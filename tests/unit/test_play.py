"""What a play offers to agents: threads, branches, children, limits, and one end."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from agentflow.agents.react import react
from agentflow.attempts import Ask
from agentflow.environments import ToolEnvironment
from agentflow.errors import BackendFailure
from agentflow.gate import Gate
from agentflow.messages import Message, Reply, ToolCall
from agentflow.play import AgentConfig, AgentFunction, EpisodePlayer, Play, PlayOver, Scene
from agentflow.policy import Sampling, ScriptedPolicy
from agentflow.renderer import Renderer
from agentflow.roles import TextModel
from agentflow.speakers import Speaker, TextSpeaker, TokenSpeaker
from agentflow.tools.tool import tool
from agentflow.trainers.scratch import new_tokenizer
from agentflow.trajectory import Completion, Episode, Status, Task, full_sequences

TOKENIZER = new_tokenizer([" look harbour lantern fine answer memory first second third"], max_words=100)
FINE = Reply(Message("assistant", "fine"))
LOOK = Reply(Message("assistant", tool_calls=(ToolCall("look", {}),)))


class Harbour(ToolEnvironment):
    """Look around, then answer."""

    def tasks(self, split: str) -> list[Task]:
        return []

    @tool
    async def look(self) -> str:
        """Look around."""
        return "lantern"

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        return {"success": float(answer == task.answer)}


RENDERER = Renderer(TOKENIZER, Harbour().tool_schemas)


class Echo:
    """A frozen model that says how many messages it was shown."""

    identity = "echo"

    def __init__(self) -> None:
        self.shown: list[Sequence[Message]] = []

    async def complete(self, messages: Sequence[Message]) -> str:
        self.shown.append(messages)
        return f"{len(messages)}"


class Policy(ScriptedPolicy):
    """Always says fine, remembers its prompts, and lets a test hold a session's tokens back."""

    def __init__(self) -> None:
        super().__init__(lambda _: RENDERER.reply(FINE.message))
        self.prompts: dict[str, list[list[int]]] = {}
        self.seeds: list[int] = []
        self.held: dict[str, asyncio.Event] = {}
        self.released: list[str] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Completion:
        """Say fine, once the session is let go."""
        self.prompts.setdefault(session, []).append(list(prompt_ids))
        self.seeds.append(sampling.seed)
        if session in self.held:
            await self.held[session].wait()
        return await super().generate(prompt_ids, sampling, session=session)

    def release(self, session: str) -> None:
        """Remember who was released."""
        self.released.append(session)


class WatchedGate(Gate):
    """Tells whether anybody is acting."""

    @property
    def waits(self) -> bool:
        """Whether a batch would be held back."""
        return bool(self._acting)


def played(
    agent: AgentFunction,
    *,
    policy: Policy | None = None,
    gate: Gate | None = None,
    model: TextModel | None = None,
    **limits: Any,
) -> tuple[Play, Episode]:
    """Let an agent play an episode; the play, and its record."""
    config = AgentConfig(**limits)
    tokens = TokenSpeaker(policy or Policy(), RENDERER, config=config)
    speakers: dict[str, Speaker] = {"planner": tokens, "verifier": tokens, "judge": TextSpeaker(model or Echo())}
    plays: list[Play] = []

    async def seen(play: Play) -> None:
        plays.append(play)
        await agent(play)

    player = EpisodePlayer(seen, Scene(Harbour, speakers, config))
    episode = asyncio.run(player.play(Ask("e", Task("t", "look at the harbour", "fine"), 7), gate))
    return plays[0], episode


def said(text: str) -> tuple[Message, ...]:
    """Return one message of a user."""
    return (Message("user", text),)


def test_conversation_that_is_written_anew_stores_what_differs_from_its_last_turn() -> None:
    policy = Policy()

    async def agent(play: Play) -> None:
        await play.reset()
        for memory in ("memory first", "memory first second", "memory third", "memory third"):
            await play.ask(play.thread(grows=False), said(memory))

    play, episode = played(agent, policy=policy)
    trajectory = episode.main
    first, second, third, same = trajectory.turns
    assert first.prefix_length == 0
    full = [sequence for sequence, _ in full_sequences(trajectory)]
    for prompt, (sequence, num_sampled) in zip(policy.prompts["e"], full_sequences(trajectory), strict=True):
        assert list(sequence[: len(sequence) - num_sampled]) == prompt
    assert second.prefix_length > third.prefix_length > 0
    assert same.prefix_length == len(policy.prompts["e"][3]) - 1, "a turn has a context of its own"
    assert play.threads[0].token_ids == full[-1]


def test_threads_have_names_and_seeds_of_their_own_and_are_released_with_the_episode() -> None:
    policy = Policy()

    async def agent(play: Play) -> None:
        heard = await play.reset()
        for role, name in (("planner", ""), ("verifier", ""), ("verifier", "2")):
            await play.ask(play.thread(role, name=name), heard)
        assert play.thread("verifier") is play.threads[1]

    _, episode = played(agent, policy=policy)
    trajectory = episode.main
    assert list(policy.prompts) == ["e", "e#verifier", "e#verifier.2"] == policy.released
    assert len(set(policy.seeds)) == 3
    assert (trajectory.status.kind, trajectory.status.reason) == ("truncated", "agent")


def test_what_the_environment_pays_goes_to_the_main_threads_last_turn() -> None:
    async def agent(play: Play) -> None:
        heard = await play.reset()
        await play.ask(play.thread(), heard)
        await play.act(LOOK)
        reply = await play.ask(play.thread("verifier", grows=False), said("fine"))
        await play.act(LOOK)
        assert await play.act(reply) == ()
        with pytest.raises(PlayOver):
            await play.act(LOOK)
        await play.ask(play.thread(), said("look"))

    play, episode = played(agent)
    trajectory = episode.main
    (turn,) = trajectory.turns
    assert (turn.reward, trajectory.success, trajectory.status.kind) == (1.0, True, "completed")
    assert turn.terms == {"well_formed": 1.0, "valid_call": 2.0, "success": 1.0}
    assert play.threads[1].turns[0].reward == 0.0


def test_frozen_model_is_shown_its_thread_and_says_nothing_that_could_be_trained() -> None:
    model = Echo()

    async def agent(play: Play) -> None:
        await play.reset()
        grows, anew = play.thread("judge"), play.thread("judge", grows=False, name="anew")
        assert [(await play.ask(grows, said("fine"))).message.content for _ in range(2)] == ["1", "3"]
        assert [(await play.ask(anew, said("fine"))).message.content for _ in range(2)] == ["1", "1"]

    _, episode = played(agent, model=model)
    trajectory = episode.main
    assert trajectory.num_sampled_tokens == 0
    assert [message.content for message in model.shown[1]] == ["fine", "1", "fine"]
    assert episode.exchanges == ()


def test_branches_hold_a_batch_back_while_any_of_them_acts_and_hand_over_to_their_parent() -> None:
    policy, gate, seen = Policy(), WatchedGate(patience_s=0), []

    async def agent(play: Play) -> None:
        heard = await play.reset()

        async def branch(role: str) -> str:
            policy.held[f"e#{role}"] = asyncio.Event()
            await play.ask(play.thread(role), heard)
            return role

        async def watch() -> None:
            """Let the second branch end first, then the first one."""
            await asyncio.sleep(0.01)
            seen.append(gate.waits)
            policy.held["e#verifier"].set()
            await asyncio.sleep(0.01)
            seen.append(gate.waits)
            policy.held["e#planner"].set()

        play.thread("judge")  # so that no branch has the main thread
        watching = asyncio.ensure_future(watch())
        seen.append(gate.waits)
        assert await play.together(branch("planner"), branch("verifier")) == ["planner", "verifier"]
        seen.append(gate.waits)
        await play.ask(play.thread("judge"), heard)
        await watching

    played(agent, policy=policy, gate=gate)
    assert seen[:2] == [True, False], "acting before; while both are asked, nobody is"
    assert seen[2] is False, "one branch is over, the other one is asked still"
    assert seen[3] is True, "the last one hands over"


def test_asking_twice_at_once_without_together_is_refused() -> None:
    async def agent(play: Play) -> None:
        heard = await play.reset()
        await asyncio.gather(play.ask(play.thread(), heard), play.ask(play.thread("verifier"), heard))

    policy = Policy()
    policy.held["e"] = asyncio.Event()
    _, episode = played(agent, policy=policy)
    trajectory = episode.main
    assert trajectory.status.kind == "failed"
    assert "play.together" in trajectory.status.detail


def test_branch_that_breaks_ends_the_others_and_fails_the_episode_by_its_cause() -> None:
    policy = Policy()
    policy.held["e#verifier"] = asyncio.Event()

    async def agent(play: Play) -> None:
        heard = await play.reset()
        play.thread()

        async def broken() -> None:
            raise BackendFailure("the server is gone")

        await play.together(play.ask(play.thread("verifier"), heard), broken())

    play, episode = played(agent, policy=policy)
    trajectory = episode.main
    assert trajectory.status == Status("failed", "backend", "the server is gone")
    assert trajectory.success is None
    assert play.threads[1].turns == []


def test_children_have_environments_ids_and_limits_of_their_own() -> None:
    policy = Policy()

    async def agent(play: Play) -> None:
        await play.ask(play.thread(), await play.reset())
        tasks = [Task(f"child {n}", "look", answer) for n, answer in enumerate(("fine", "answer"))]
        children = await play.together(*(play.delegate(task, react, call=n) for n, task in enumerate(tasks)))
        assert [(child.id, child.over.kind, child.success) for child in children] == [
            ("e/1.0", "completed", True),
            ("e/1.1", "completed", False),
        ]
        assert play.over is None
        await play.act(FINE)

    play, episode = played(agent, policy=policy)
    trajectory = episode.main
    assert (trajectory.status.kind, trajectory.raw_return) == ("completed", 1.0)
    assert set(policy.prompts) == {"e", "e/1.0", "e/1.1"}
    assert [child.id for child in play.children] == ["e/1.0", "e/1.1"]


def test_record_holds_every_thread_by_name_and_every_child_by_its_call_whichever_came_first() -> None:
    async def agent(play: Play) -> None:
        heard = await play.reset()
        await play.ask(play.thread(), heard)
        await play.delegate(Task("later", "look", "fine"), react, call=1)
        await play.delegate(Task("first", "look", "answer"), react, call=0)
        await play.ask(play.thread("verifier", name="2"), heard)
        await play.ask(play.thread("judge", grows=False), heard)
        await play.ask(play.thread("verifier", name="1"), heard)
        await play.act(FINE)

    _, episode = played(agent)
    assert [(t.id, t.task_id, t.role, t.parent, t.call, t.success) for t in episode.trajectories] == [
        ("e", "t", "planner", "", 0, True),
        ("e#judge", "t", "judge", "e", 0, True),
        ("e#verifier.1", "t", "verifier", "e", 0, True),
        ("e#verifier.2", "t", "verifier", "e", 0, True),
        ("e/1.0", "first", "planner", "e", 0, False),
        ("e/1.1", "later", "planner", "e", 1, True),
    ]
    assert [len(t.turns) for t in episode.trajectories] == [1] * 6
    assert episode.by_role("verifier") == episode.trajectories[2:4]
    assert episode.main.num_sampled_tokens > 0 == episode.trajectories[1].num_sampled_tokens


def test_child_whose_infrastructure_breaks_fails_its_parent_and_ends_its_siblings() -> None:
    policy = Policy()
    policy.held["e/0.1"] = asyncio.Event()

    async def agent(play: Play) -> None:
        await play.reset()

        async def breaks(child: Play) -> None:
            await child.reset()
            raise BackendFailure("gone")

        await play.together(play.delegate(play.task, breaks), play.delegate(play.task, react, call=1))

    play, episode = played(agent, policy=policy)
    trajectory = episode.main
    assert trajectory.status == Status("failed", "backend", "gone")
    assert [child.over for child in play.children] == [trajectory.status, Status("truncated", "parent")]


def test_thread_that_is_full_ends_the_episode_as_it_stands() -> None:
    async def agent(play: Play) -> None:
        heard = await play.reset()
        await play.ask(play.thread(), heard)
        await play.ask(play.thread("verifier", grows=False), said("memory " * 100))

    _, episode = played(agent, max_episode_tokens=100)
    trajectory = episode.main
    assert trajectory.status == Status("truncated", "tokens")
    assert trajectory.success is False


@pytest.mark.parametrize("error", [KeyError("node"), SystemExit(3), asyncio.CancelledError()])
def test_agent_that_breaks_fails_its_own_episode(error: BaseException) -> None:
    async def agent(play: Play) -> None:
        await play.reset()
        raise error

    _, episode = played(agent)
    trajectory = episode.main
    assert (trajectory.status.kind, trajectory.status.reason) == ("failed", "unknown")
