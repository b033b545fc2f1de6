"""The run files of docs/examples fit a model of the shape that they name, and the script for GPUs runs."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config
from typer.testing import CliRunner

from agentflow.cli.app import app
from agentflow.models import ModelConfig, load_model
from tests.benchmarks import gpu

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "qwen3_0.6b_websearch.yaml"
VLLM: list[str] = (
    [] if os.environ.get("AGENTFLOW_VLLM_PYTHON") else ["policy.backend=transformers", "policy.servers.args=[]"]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random model in the shape of Qwen3-0.6B, with a starter's tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3-0.6b")
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        built: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    built.to_empty(device="cpu")
    built.tie_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.02)
    built.save_pretrained(folder)
    load_model(ModelConfig(device="cpu"), env="websearch").tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("words", [[], ["model.lora_rank=32", "learner.learning_rate=2.0e-05"]], ids=["full", "lora"])
def test_qwen3_on_one_gpu_can_be_run(model: Path, words: list[str], tmp_path: Path) -> None:
    given = [f"model.path={model}", "model.device=cpu", f"run.out={tmp_path}", *VLLM, *words]
    told = CliRunner().invoke(app, ["train", "--config", str(EXAMPLE), "--dry-run", *given])
    assert told.exit_code == 0, told.output
    assert "dry run: nothing was trained" in told.output
    assert "596.0 M parameters" in told.output if not words else "M parameters" in told.output


def test_the_measurement_for_gpus_counts_tokens_of_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny", "--prompts", "40", "--private", "20", "--repeats", "1"])
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| rows", "| forest"))
    ]
    # Eight trajectories of 40 shared and 20 own tokens each.
    assert [row[2:4] for row in rows] == [["480", "480"], ["480", "200"]]


def test_the_script_for_gpus_is_one_bash_can_read() -> None:
    subprocess.run(["bash", "-n", str(EXAMPLE.parents[2] / "tests" / "gpu" / "run.sh")], check=True)
