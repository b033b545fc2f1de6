"""The embedded world: generated houses, seen in words."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from agentflow.environment import Expert, Split
from agentflow.environments.navigation.body import Pose, move, parse_actions
from agentflow.environments.navigation.course import Course, CourseConfig, course_of, draw_tasks
from agentflow.environments.navigation.expert import Walked, Walker, walk
from agentflow.environments.navigation.geodesic import Field, Geodesics
from agentflow.environments.navigation.images import render
from agentflow.environments.navigation.picture import draw_house
from agentflow.environments.navigation.views import view
from agentflow.environments.navigation.world import Leg
from agentflow.errors import ToolError
from agentflow.messages import Image
from agentflow.trajectory import Task

INSTRUCTIONS = (
    "Follow the instruction through the house. You see the room you are in: its things, and its doors by the room "
    "behind, with the direction in degrees and the distance in steps of 25 cm. Say what you go for, then move; STOP "
    "where the instruction ends."
)


class EmbeddedWorld:
    """Houses by seed.

    Args:
        config: What courses are drawn by.
        counts: The number of tasks of each split.
        noise: How often the expert errs.
        with_images: Whether a picture stands beside each view.
    """

    instructions = INSTRUCTIONS
    tool_names = ("move",)
    max_turns = 16
    radius = 0.75
    waits_outside = False

    def __init__(self, config: CourseConfig, counts: dict[Split, int], *, noise: float, with_images: bool) -> None:
        self._with_images = with_images
        self._config = config
        self._counts = counts
        self._noise = noise

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split."""
        return _tasks(self._config, split, self._counts[split])

    async def begin(self, task: Task) -> "EmbeddedWalk":
        """Begin an episode."""
        return EmbeddedWalk(self._prepared(task), with_images=self._with_images)

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a walker that knows the way and, with noise, sometimes leaves it."""
        return Walker(self._prepared(task).course, noise=self._noise, seed=seed)

    def replay(self, task: Task, calls: Sequence[str]) -> str | None:
        """Draw the way that calls led to beside the expert's."""
        prepared = self._prepared(task)
        course = prepared.course
        pose, path = course.start, [course.start.position]
        for words in calls:
            try:
                moved = move(course.house, pose, parse_actions(words))
            except ToolError:
                continue
            pose = moved.pose
            path += moved.positions
        return draw_house(course, path, prepared.expert.positions)

    def _prepared(self, task: Task) -> "Prepared":
        return _prepare(self._config, task.id, json.dumps([task.answer, dict(task.metadata)]))


class EmbeddedWalk:
    """One episode in a house; see `world.Walk`."""

    def __init__(self, prepared: "Prepared", *, with_images: bool = False) -> None:
        course = prepared.course
        self._course = course
        self._field = prepared.field
        self._with_images = with_images
        self._pose: Pose = course.start
        self.reference = prepared.expert.positions
        self.num_expert_actions = prepared.expert.num_actions
        distances = prepared.field.distances([course.start.position])
        self.shortest = distances[0]
        text = view(course.house, course.start)
        images = (render(course.house, course.start),) if with_images else ()
        self.first = Leg(text, images, places=(course.start.position,), distances=tuple(distances))

    async def take(self, words: str) -> Leg:
        """Carry out up to three actions."""
        house, before = self._course.house, self._pose
        moved = move(house, before, parse_actions(words))
        self._pose = moved.pose
        path = [before.position, *moved.positions]
        return Leg(
            text=view(house, moved.pose, bumped=moved.num_blocked > 0),
            images=(render(house, moved.pose),) if self._with_images else (),
            places=moved.positions,
            distances=tuple(self._field.distances(moved.positions or path)),
            length=sum(math.dist(a, b) for a, b in pairwise(path)),
            num_actions=moved.num_actions,
            num_collisions=moved.num_blocked,
            stopped=moved.stopped,
        )

    def view(self) -> str:
        """Say what the body sees now."""
        return view(self._course.house, self._pose)

    def picture(self) -> Image:
        """Draw what the body sees now."""
        return render(self._course.house, self._pose)

    async def close(self) -> None:
        """Hold nothing."""


@lru_cache(maxsize=4)
def _tasks(config: CourseConfig, split: Literal["train", "heldout"], count: int) -> tuple[Task, ...]:
    return tuple(draw_tasks(config, split, count))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all episodes of a task share.

    Attributes:
        course: House, start and goal.
        expert: The expert's way.
        field: The shortest ways to the goal.
    """

    course: Course
    expert: Walked
    field: Field


@lru_cache(maxsize=512)
def _prepare(config: CourseConfig, task_id: str, told: str) -> Prepared:
    answer, metadata = json.loads(told)
    course = course_of(config, Task(task_id, "", answer, metadata))
    return Prepared(course, walk(course), Geodesics(course.house).to(course.goal))
