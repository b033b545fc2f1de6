"""Compare one update and one rollout of AgentFlow with those of TRL's GRPOTrainer: time, peak memory, same gradient.

    HF_HUB_OFFLINE=1 python -m tests.benchmarks.against_trl [--threads 2] [--repeats 3] [--prompts 100 1000 4000]

Both sides have the same model, tokens, loss, optimiser, dtype and threads. Sides alternate, medians are reported. TRL
is shown with each way to cut its batch that makes sense. Peak memory is measured in a fresh process for each side.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentflow.attempts import Ask
from agentflow.gate import Gate
from agentflow.messages import Message, Reply
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policy import Sampling
from agentflow.rollout import Rollout, RolloutConfig, derive_seed
from agentflow.trainers.algorithm import load_recipe
from agentflow.trainers.engines.base import LearnerConfig
from agentflow.trajectory import Episode, Status, Task, Trajectory, Turn
from tests.benchmarks.forest import VOCABULARY, group, high_water_megabytes, small_qwen3
from tests.benchmarks.trl_trainer import NEVER_SAMPLED, TRLTrainer, batch
from tests.numerics.learning import Learner, Sample

GROUP = 8
MICRO_BATCHES = (8, 2, 1)
OURS = "AgentFlow"
LEARNING_RATE = 1e-6


def trl_name(micro_batch: int) -> str:
    """Name TRL with a way to cut its batch."""
    return f"TRL, {micro_batch} row{'s' if micro_batch > 1 else ''} a pass"


SIDES = {OURS: 0} | {trl_name(rows): rows for rows in MICRO_BATCHES}


@dataclass(frozen=True, slots=True)
class Updates:
    """A group of five turns, and how each side updates its own copy of the model on it."""

    trajectories: list[Trajectory]
    advantages: list[float]
    trl: TRLTrainer
    ours: PreTrainedModel
    learner: Learner

    @classmethod
    def prepare(cls, folder: str, *, prompt: int, private: int) -> "Updates":
        """Draw a group with advantages of mean zero."""
        advantages = np.linspace(-1.5, 1.5, GROUP).tolist()
        trl = TRLTrainer(folder, group_size=GROUP, learning_rate=LEARNING_RATE)
        model = small_qwen3()
        learner = Learner(model, LearnerConfig(learning_rate=LEARNING_RATE), num_updates=1000)
        return cls(group(prompt, private, size=GROUP), advantages, trl, model, learner)

    def run(self, side: str) -> None:
        """Take one update, from the trajectories to the new weights."""
        if side == OURS:
            self._learn()
        else:
            self.trl.update(batch(self.trajectories, self.advantages), SIDES[side])

    def _learn(self) -> None:
        samples = [
            Sample(trajectory, np.full(len(trajectory.turns), advantage))
            for trajectory, advantage in zip(self.trajectories, self.advantages, strict=True)
        ]
        self.learner.update(samples, load_recipe("grpo", {"loss": {"kl": None}}))

    def model(self, side: str) -> PreTrainedModel:
        """Return the model that a side updates."""
        return self.ours if side == OURS else self.trl.model


@dataclass(frozen=True, slots=True)
class Shape:
    """What one rollout samples.

    Attributes:
        prompts: Distinct prompts, each sampled by one group.
        prompt_tokens: Tokens of a prompt.
        turns: Turns of a trajectory.
        turn_tokens: Tokens sampled in a turn, and tokens of the observation between two turns.
    """

    prompts: int
    prompt_tokens: int
    turns: int
    turn_tokens: int


SHAPES = (Shape(4, 200, 1, 100), Shape(1, 1000, 5, 50))


class FixedTurns:
    """An agent (`rollout.Agent`) whose turns and observations have a fixed number of random tokens."""

    def __init__(self, policy: TransformersPolicy, prompts: dict[str, list[int]], shape: Shape) -> None:
        self._policy = policy
        self._prompts = prompts
        self._shape = shape

    def begin(self, gate: Gate) -> None:
        """Let the policy hold its batches back at the gate."""
        self._policy.settle = gate.settle

    async def play(self, ask: Ask, gate: Gate) -> Episode:
        """Sample each turn from the transcript so far."""
        observation = tuple(draw(self._shape.turn_tokens))
        transcript: list[int] = []
        turns: list[Turn] = []
        for index in range(self._shape.turns):
            context = observation if index else tuple(self._prompts[ask.task.id])
            before = len(transcript)
            transcript += context
            sampling = Sampling(max_tokens=self._shape.turn_tokens, seed=derive_seed(ask.seed, index))
            gate.away(ask.id)
            completion = await self._policy.generate(transcript, sampling, session=ask.id)
            gate.acting(ask.id)
            transcript += completion.token_ids
            turns.append(Turn(before, context, completion, (), Reply(Message("assistant"))))
        self._policy.release(ask.id)
        return Episode((Trajectory(ask.id, ask.task.id, ask.seed, tuple(turns), Status("completed"), True),))


def draw(num_tokens: int, seed: int = 0) -> list[int]:
    """Draw random tokens."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, num_tokens).tolist()


def rollout_sides(folder: str, shape: Shape) -> dict[str, Callable[[], int]]:
    """Return one rollout of each side, which returns the tokens of all transcripts."""
    prompts = {str(i): draw(shape.prompt_tokens, seed=i) for i in range(shape.prompts)}
    policy = TransformersPolicy(small_qwen3(), (NEVER_SAMPLED,))
    rollout = Rollout(FixedTurns(policy, prompts, shape), RolloutConfig())
    tasks = [Task(name, "") for name in prompts]
    trl = TRLTrainer(folder, group_size=GROUP, learning_rate=LEARNING_RATE, turn_tokens=shape.turn_tokens)
    rows = [prompt for prompt in prompts.values() for _ in range(GROUP)]

    def ours() -> int:
        policy.forget()  # as in training, where the weights, and so all keys and values, are new
        collected = rollout.run(tasks, group_size=GROUP, seed=0, label="0")
        turns = [turn for trajectory in collected.trajectories for turn in trajectory.turns]
        return sum(len(turn.context_ids) + len(turn.completion.token_ids) for turn in turns)

    def theirs() -> int:
        return sum(map(len, trl.rollout(rows, turns=shape.turns, observe=lambda: draw(shape.turn_tokens))))

    return {OURS: ours, "TRL": theirs}


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run all sides in turn, once to warm up and then `repeats` times; return each side's median in seconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@contextmanager
def recorded_gradients(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Record the gradients of an update before it clips and clears them, by parameter."""
    gradients: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[Tensor], None]:
        def keep(parameter: Tensor) -> None:
            assert parameter.grad is not None, "the hook runs after the gradient was added"
            gradients[name] = parameter.grad.clone()

        return keep

    parameters = list(model.named_parameters())
    hooks = [parameter.register_post_accumulate_grad_hook(record(name)) for name, parameter in parameters]
    yield gradients
    for hook in hooks:
        hook.remove()


def gradient_difference(folder: str, side: str) -> float:
    """Return the largest difference of one update's gradients, relative to the largest entry of its parameter."""
    gradients = []
    for name in (OURS, side):
        updates = Updates.prepare(folder, prompt=100, private=100)
        with recorded_gradients(updates.model(name)) as recorded:
            updates.run(name)
        gradients.append(recorded)
    ours, theirs = gradients
    assert ours.keys() == theirs.keys(), "both sides train the same parameters"
    return max(float((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max()) for key in ours)


def peak_megabytes(side: str, prompt: int, options: argparse.Namespace) -> float:
    """Return the memory that one update adds at its peak, in a process of its own."""
    words = [sys.executable, "-m", "tests.benchmarks.against_trl", "--peak", side, "--prompts", str(prompt)]
    words += ["--private", str(options.private), "--threads", str(options.threads)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(side: str, prompt: int, private: int) -> None:
    """Print the megabytes that one update adds to what this process holds before it (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        updates = Updates.prepare(folder, prompt=prompt, private=private)
    Path("/proc/self/clear_refs").write_text("5")  # lowers the high-water mark to what is held now
    before = high_water_megabytes()
    updates.run(side)
    print(high_water_megabytes() - before)


def row(*cells: str | int | float) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def compare_updates(folder: str, prompt: int, options: argparse.Namespace) -> list[str]:
    """Return the lines of one prompt length, a line a side."""
    updates = Updates.prepare(folder, prompt=prompt, private=options.private)
    times = alternate({side: partial(updates.run, side) for side in SIDES}, options.repeats)
    name = f"{prompt} + {GROUP} x {options.private}"
    return [
        row(name, side, times[side], times[side] / times[OURS], f"{peak_megabytes(side, prompt, options):.0f}")
        for side in SIDES
    ]


def compare_rollouts(folder: str, shape: Shape, repeats: int) -> list[str]:
    """Return the lines of one shape, a line a side."""
    sides = rollout_sides(folder, shape)
    counts = {name: run() for name, run in sides.items()}
    assert len(set(counts.values())) == 1, f"both sides must handle the same number of tokens, not {counts}"
    times = alternate(dict(sides), repeats)
    sampled = shape.prompts * GROUP * shape.turns * shape.turn_tokens
    name = f"{shape.prompts * GROUP} x ({shape.prompt_tokens} + {shape.turns} x {shape.turn_tokens})"
    return [row(name, side, times[side], f"{sampled / times[side]:.0f}", times[side] / times[OURS]) for side in sides]


def describe_machine(threads: int) -> str:
    """Name what the numbers depend on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    load = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, load {load:.1f} at the start; {versions}"


def print_table(header: Sequence[str], lines: Iterator[list[str]]) -> None:
    """Print a Markdown table, line by line as it grows."""
    print("\n" + row(*header) + "\n" + row(*["---"] * len(header)))
    for group_of_lines in lines:
        print("\n".join(group_of_lines), flush=True)


def main() -> None:
    """Print the tables of the comparison in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--private", type=int, default=500)
    parser.add_argument("--peak", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        measure_peak(options.peak, options.prompts[0], options.private)
        return
    print(describe_machine(options.threads))
    with tempfile.TemporaryDirectory() as folder:
        for side in list(SIDES)[1:]:
            print(f"largest relative difference of a gradient to {side}: {gradient_difference(folder, side):.1e}")
        print_table(
            ("rollout: rows x (prompt + turns x sampled)", "side", "s", "sampled tokens/s", "s over ours"),
            (compare_rollouts(folder, shape, options.repeats) for shape in SHAPES),
        )
        print_table(
            ("update: tokens", "side", "s", "s over ours", "peak MB added"),
            (compare_updates(folder, prompt, options) for prompt in options.prompts),
        )
    assert torch.get_num_threads() == options.threads, "a side changed the number of threads"


if __name__ == "__main__":
    main()
