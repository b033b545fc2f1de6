import random
from collections import deque
from functools import cache

from pydantic import Field

from agentflow.config import Config
from agentflow.environments.tool_environment import ToolEnvironment
from agentflow.errors import ToolError
from agentflow.messages import Message, ToolCall
from agentflow.tools.tool import tool
from agentflow.trajectory import Task

SIDE = 5
STEPS = {"north": (0, -1), "east": (1, 0), "south": (0, 1), "west": (-1, 0)}
BACK = {"north": "south", "east": "west", "south": "north", "west": "east"}


def beyond(room, direction):
    return room[0] + STEPS[direction][0], room[1] + STEPS[direction][1]


class Maze:
    """Rooms in a square with doors between some of them: the same for the same seed."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.doors = {(x, y): set() for x in range(SIDE) for y in range(SIDE)}
        for room in self.doors:
            for direction in ("east", "south"):
                if beyond(room, direction) in self.doors and rng.random() < 0.8:
                    self.doors[room].add(direction)
                    self.doors[beyond(room, direction)].add(BACK[direction])
        self.start, self.exit = rng.sample(list(self.doors), 2)

    def way(self, start):
        """Return the directions of a shortest way to the exit; empty where there is none."""
        ways, waiting = {start: []}, deque([start])
        while waiting:
            room = waiting.popleft()
            for direction in (name for name in STEPS if name in self.doors[room]):
                if beyond(room, direction) not in ways:
                    ways[beyond(room, direction)] = [*ways[room], direction]
                    waiting.append(beyond(room, direction))
        return ways.get(self.exit, [])

    def view(self, room):
        """Say what is seen from a room."""
        east, south = self.exit[0] - room[0], self.exit[1] - room[1]
        parts = [(east, "east" if east > 0 else "west"), (south, "south" if south > 0 else "north")]
        distances = [f"{abs(number)} {direction}" for number, direction in parts if number]
        doors = [direction for direction in STEPS if direction in self.doors[room]]
        return f"Doors: {', '.join(doors)}. Exit: {' and '.join(distances) or 'here'}."


maze_of = cache(Maze)


class MyOptions(Config):
    expert_noise: float = Field(0.0, ge=0, le=1, description="How careless the expert is; 0 never errs.")


class MyEnvironment(ToolEnvironment):
    """Find the exit of a maze."""

    instructions = "Go to the exit, then say: here."
    options_model = MyOptions
    max_turns = 12

    def tasks(self, split):
        mazes = {seed: maze_of(seed) for seed in (range(3000) if split == "train" else range(3000, 3300))}
        lengths = {seed: len(maze.way(maze.start)) for seed, maze in mazes.items()}
        return [
            Task(f"maze-{seed}", mazes[seed].view(mazes[seed].start), metadata={"seed": seed, "steps": steps})
            for seed, steps in lengths.items()
            if 2 <= steps <= 8
        ]

    def on_reset(self, task, rng):
        self.maze = maze_of(task.metadata["seed"])
        self.room = self.maze.start

    @tool
    def go(self, direction: str) -> str:
        """Go through a door.

        Args:
            direction: north, east, south or west.
        """
        if direction not in self.maze.doors[self.room]:
            raise ToolError(f"There is no door to the {direction}.")
        self.room = beyond(self.room, direction)
        return self.maze.view(self.room)

    def score(self, task, answer):
        return {"success": float(answer.strip() == "here" and self.room == self.maze.exit)}

    def expert(self, task, seed):
        return MyExpert(self, random.Random(seed))


class MyExpert:
    """Plays one episode; it may ask the environment for its state, which `reset` has set.

    A careless expert leaves something to reinforcement learning: what it does wrong, it does by chance, and what it
    should have done can be seen. This one strays, and says that it has arrived before it has.
    """

    def __init__(self, environment, rng):
        self.environment = environment
        self.rng = rng

    def act(self, observation):
        """Return the next message, given what the environment said since the last one."""
        maze, room = self.environment.maze, self.environment.room
        if room == maze.exit or self.errs(0.1):
            return Message("assistant", "here")
        direction = self.rng.choice(sorted(maze.doors[room])) if self.errs(0.2) else maze.way(room)[0]
        return Message("assistant", tool_calls=(ToolCall("go", {"direction": direction}),))

    def errs(self, rate):
        return self.rng.random() < rate * self.environment.options.expert_noise
