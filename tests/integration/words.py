"""A small environment that teaches something from the first iteration, and a tiny model that plays it."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from agentflow.environments import ToolEnvironment
from agentflow.tools.tool import tool
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trajectory import Task

WORDS = ("red", "green", "blue", "grey")


class Words(ToolEnvironment):
    """Say one colour as often as you can; every reply that holds it is paid by its share."""

    instructions = "Say the colour."
    max_turns = 3

    def tasks(self, split: str) -> list[Task]:
        """Return one task a colour and number."""
        start = 0 if split == "train" else 1000
        return [Task(f"{split}-{i}", f"say {WORDS[i % 4]} {start + i}", WORDS[i % 4]) for i in range(64)]

    def hint(self, task: Task, level: int) -> str:
        """Say the colour outright at the highest level only."""
        return f"it is {task.answer}" if level > 1 else "it is a colour"

    @tool
    def look(self, at: str) -> str:
        """Look at something.

        Args:
            at: What to look at.
        """
        return f"{at} is grey"

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Return the share of words that are the task's colour."""
        words = answer.split()
        return {"success": sum(word == task.answer for word in words) / max(1, len(words))}


class Varied(Words):
    """Pay each answer otherwise, so that every group teaches something; of the held-out tasks each fourth breaks."""

    max_turns = 1

    def on_reset(self, task: Task, rng: Any) -> None:
        """Break, as infrastructure does."""
        if task.id.startswith("heldout") and int(task.id.split("-")[1]) % 4 == 3:
            raise OSError("no such simulator")

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Return a number that depends on every letter."""
        return {"success": 1.0 if task.id.startswith("heldout") else zlib.crc32(answer.encode()) / 2**32}


class Coin(Words):
    """Pay about every second answer, whatever it says, so that nearly every group holds both outcomes."""

    max_turns = 2

    def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Return 0 or 1, depending on every letter."""
        return {"success": float(zlib.crc32(answer.encode()) % 2)}


def save_tiny_model(folder: Path, *, seed: int = 0, brief: bool = False) -> Path:
    """Save a randomly initialised model with a tokenizer of the environment's words; a brief one talks little."""
    tokenizer = new_tokenizer([f" {' '.join(WORDS)} say look at is Say the colour."], max_words=64)
    shape = ScratchConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_key_value_heads=1)
    model = new_model(tokenizer, shape, seed=seed)
    if brief:
        _say_often(model, tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _say_often(model: PreTrainedModel, token: int) -> None:
    """Turn a token's embedding towards what the model usually has in mind, so that it is said often."""
    texts = torch.randint(0, model.config.vocab_size, (64, 20), generator=torch.Generator().manual_seed(0))
    usual = model.get_decoder()(texts).last_hidden_state.mean((0, 1))  # type: ignore[no-untyped-call]
    model.get_output_embeddings().weight[token] += 3 * usual / usual.square().sum()  # type: ignore[no-untyped-call]
