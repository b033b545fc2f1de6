"""A mixture of experts learns, and a run says at its start which loss of the model's own it leaves out."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.sft import SftConfig, train_sft
from agentflow.trainers.start import train
from agentflow.view.console import QuietConsole
from tests.integration.words import save_tiny_model

WORDS = f"{Path(__file__).parent / 'words.py'}:Words"


class Listening(QuietConsole):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module", params=[0.001, 0.0])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "head_dim": 8}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4}
    config = Qwen3MoeConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        num_experts_per_tok=2,
        router_aux_loss_coef=request.param,
        max_position_embeddings=4096,
        **shape,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def expected(model: Path) -> list[str]:
    coefficient = Qwen3MoeConfig.from_pretrained(model).router_aux_loss_coef
    return [f"router_aux_loss_coef = {coefficient}"] if coefficient else []


def test_training_says_that_the_routers_own_loss_is_not_added(model: Path, tmp_path: Path) -> None:
    console = Listening()
    settings = TrainConfig(
        env={"name": WORDS},
        model={"path": str(model), "dtype": "float32"},
        agent={"max_turn_tokens": 8},
        evaluation={"num_tasks": 0},
        run={"iterations": 1, "tasks_per_iteration": 2, "group_size": 4, "out": str(tmp_path)},
    )
    train(settings, console)
    told = [note for note in console.notes if "routers" in note]
    assert len(told) == len(expected(model))
    assert all(words in note for words, note in zip(expected(model), told, strict=True))


def test_imitation_says_so_too(model: Path, tmp_path: Path) -> None:
    console = Listening()
    env = {"name": "reading", "style": "echo", "sizes": [1], "num_tasks": 20}
    stage = {"env": env, "num_episodes": 4, "episodes_per_update": 2, "updates": 1}
    train_sft(SftConfig(model={"path": str(model)}, stages=[stage], run={"out": str(tmp_path)}), console)
    assert len([note for note in console.notes if "routers" in note]) == len(expected(model))
