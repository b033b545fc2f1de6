"""Plans: how the attempts at a task are made."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from agentflow.attempts import PLAIN, Attempts, Outcome, Variant, independent
from agentflow.maths.choices import best_of
from agentflow.trainers.slots.base import Plan
from agentflow.trainers.slots.records import Draw, Now, State
from agentflow.trajectory import Trajectory


class Independent(Plan):
    """Attempts that know nothing of each other."""

    kind: Literal["independent"] = "independent"

    def attempts(self, draw: Draw, state: State, now: Now) -> Attempts:
        """Make all of them at once."""
        return independent(draw.count)


class Sage(Plan):
    """Ask all attempts again with a stronger hint until one succeeds: SAGE's ladder (2602.03143).

    Only the last group is compared and learned from, with the hint in its context: it is on policy for that context.
    The hints are the environment's.
    """

    kind: Literal["sage"] = "sage"
    needs_hints: ClassVar[bool] = True
    levels: int = Field(3, ge=1, description="The strongest hint; each level that is needed plays the group once more.")

    def attempts(self, draw: Draw, state: State, now: Now) -> Attempts:
        """Climb the ladder."""
        for level in range(self.levels + 1):
            episodes = yield [Variant("hint", level) if level else PLAIN] * draw.count
            if level == self.levels or any(each.main.success for each in episodes):
                return Outcome(episodes, {"level": level})
        raise AssertionError("the last level ends the ladder")


class Drafts(Plan):
    """Show the best of some drafts to the attempts that are learned from: iGRPO (2602.09000)."""

    kind: Literal["drafts"] = "drafts"
    drafts: int = Field(4, ge=1, description="Attempts from which the best is shown; nothing is learned from them.")
    words: str = Field(
        "An earlier attempt ended so. Take it as guidance, not as truth, and do not repeat it:\n{draft}",
        description="What is said of it; {draft} stands for its last reply.",
    )

    def attempts(self, draw: Draw, state: State, now: Now) -> Attempts:
        """Draft, then attempt; plainly where no draft can be shown."""
        drafts = yield [PLAIN] * self.drafts
        best = best_of([each.main.raw_return if each.main.turns else None for each in drafts])
        shown = PLAIN
        if best is not None:
            shown = Variant("draft", material=self.words.replace("{draft}", last_said(drafts[best].main)))
        episodes = yield [shown] * draw.count
        return Outcome(episodes, {"drafts": len(drafts)})


def last_said(trajectory: Trajectory) -> str:
    """Return the last reply of a trajectory, its tool calls as they were written."""
    message = trajectory.turns[-1].reply.message
    calls = [f"{call.name}({dict(call.arguments)})" for call in message.tool_calls]
    return "\n".join(filter(None, [message.content, *calls]))


TABLE: Mapping[str, type[Plan]] = {"independent": Independent, "sage": Sage, "drafts": Drafts}
