"""Plans as recipes: what they ask for, and what they make of it, by `.send` alone."""

from dataclasses import replace

import pytest

from agentflow.attempts import PLAIN, Outcome, Variant
from agentflow.messages import Message, Reply
from agentflow.trainers.algorithm import load_recipe
from agentflow.trainers.slots.records import Draw, Now
from agentflow.trajectory import Episode, Task
from tests.numerics.batches import earned_of


def played(text: str, *, success: bool, reward: float = 0.0) -> Episode:
    """An episode that ended so."""
    trajectory = earned_of([1], [0.0], success=success).trajectory
    last = replace(trajectory.turns[-1], reply=Reply(Message("assistant", text)), reward=reward)
    return Episode((replace(trajectory, turns=(last,)),))


def test_sage_climbs_until_something_succeeds() -> None:
    lost, won = played("no", success=False), played("yes", success=True)
    plan = load_recipe("sage").plan.attempts(Draw(Task("t", ""), 2), {}, Now())
    assert next(plan) == [PLAIN] * 2
    assert plan.send([lost, lost]) == [Variant("hint", 1)] * 2
    with pytest.raises(StopIteration) as end:
        plan.send([lost, won])
    assert end.value.value == Outcome([lost, won], {"level": 1})
    hopeless = load_recipe("sage").plan.attempts(Draw(Task("t", ""), 1), {}, Now())
    asked = [next(hopeless), *(hopeless.send([lost]) for _ in range(3))]
    assert [variant.level for (variant,) in asked] == [0, 1, 2, 3]
    with pytest.raises(StopIteration) as end:
        hopeless.send([lost])
    assert end.value.value.note == {"level": 3}


def test_igrpo_shows_the_best_draft_and_learns_from_the_rest() -> None:
    drafts = [played(text, success=False, reward=r) for text, r in (("a", 0.1), ("b", 0.7), ("c", 0.7), ("d", 0.0))]
    plan = load_recipe("igrpo").plan.attempts(Draw(Task("t", ""), 2), {}, Now())
    assert next(plan) == [PLAIN] * 4
    asked = plan.send(drafts)
    assert len(asked) == 2 and {(v.kind, v.material.endswith("repeat it:\nb")) for v in asked} == {("draft", True)}
    with pytest.raises(StopIteration) as end:
        plan.send(drafts[2:])
    assert end.value.value == Outcome(drafts[2:], {"drafts": 4})
