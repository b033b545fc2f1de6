"""Rewards: what groups earn beside what the run's `rewards` pay for each turn, or in its place."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from agentflow.answers import normalise
from agentflow.batch import Earned, Judged
from agentflow.maths.choices import majority
from agentflow.rewards import overlong_penalty
from agentflow.rollout import derive_seed
from agentflow.trainers.slots.base import Reward
from agentflow.trainers.slots.records import Now


class Overlong(Reward):
    """Penalise long trajectories softly (DAPO, 2503.14476, eq. 13), in their last turn."""

    kind: Literal["overlong"] = "overlong"
    after_keep: ClassVar[bool] = True  # section 3.2: it must not rescue a group without any difference in outcome
    max_tokens: int = Field(gt=0, description="Sampled tokens of a trajectory at which the penalty reaches -1.")
    buffer_tokens: int = Field(256, gt=0, description="Tokens before that limit over which it grows.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.buffer_tokens > self.max_tokens:
            raise ValueError("buffer_tokens must not exceed max_tokens")
        return self

    def __call__(self, judged: Sequence[Judged], now: Now) -> Sequence[Judged]:
        """Pay `overlong`, between -1 and 0."""
        return [replace(each, earned=tuple(map(self._penalised, each.earned))) for each in judged]

    def _penalised(self, earned: Earned) -> Earned:
        penalty = overlong_penalty(sum(earned.lengths_K), max_tokens=self.max_tokens, buffer_tokens=self.buffer_tokens)
        return earned.paid("overlong", penalty)


class Shuffled(Reward):
    """Deal the returns of each group out at random: the control that must not learn.

    Advantages keep their distribution and lose their meaning. Each trajectory is paid the return that it is dealt at
    its last turn, and nothing before.
    """

    kind: Literal["shuffled"] = "shuffled"
    after_keep: ClassVar[bool] = True

    def __call__(self, judged: Sequence[Judged], now: Now) -> Sequence[Judged]:
        """Pay `shuffled` in place of every other term."""
        rng = random.Random(derive_seed(now.seed, "shuffle", now.iteration))  # noqa: S311  reproducible
        return [_dealt(each, rng) for each in judged]


def _dealt(judged: Judged, rng: random.Random) -> Judged:
    returns = [sum(member.rewards_K.tolist()) for member in judged.earned]
    rng.shuffle(returns)
    earned = [
        replace(member, terms=({},) * len(member.terms)).paid("shuffled", dealt)
        for member, dealt in zip(judged.earned, returns, strict=True)
    ]
    return replace(judged, earned=tuple(earned))


class Majority(Reward):
    """Pay agreement with the answer that most attempts at a task gave, and nothing else: TTRL, SPINE (2511.17938).

    No gold answer is read. What votes is the last reply: its text, or its tool calls with their arguments.
    """

    kind: Literal["majority"] = "majority"

    def __call__(self, judged: Sequence[Judged], now: Now) -> Sequence[Judged]:
        """Pay `majority`, 0 or 1, in the last turn, in place of every other term."""
        return [self._voted(each) for each in judged]

    def _voted(self, judged: Judged) -> Judged:
        answers = [answer_of(member) for member in judged.earned]
        paid = majority(answers, np.zeros(len(answers), dtype=np.intp)).tolist()
        earned = [
            replace(member, terms=({},) * len(member.terms)).paid("majority", amount)
            for member, amount in zip(judged.earned, paid, strict=True)
        ]
        return replace(judged, earned=tuple(earned))


def answer_of(earned: Earned) -> str | None:
    """Return what an attempt said last, in a form in which equal answers are equal; None where it was malformed."""
    reply = earned.trajectory.turns[-1].reply
    if reply.error:
        return None
    calls = [f"{call.name} {json.dumps(dict(call.arguments), sort_keys=True)}" for call in reply.message.tool_calls]
    return normalise("\n".join(calls) or reply.message.content) or None


TABLE: Mapping[str, type[Reward]] = {"overlong": Overlong, "shuffled": Shuffled, "majority": Majority}
