"""A run that is killed at any moment and resumed is the run that was not: the same weights and metrics, bit for bit."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentflow.cli import main

SCRIPT = Path(__file__).parent / "killed_run.py"


def start(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the training script in a process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def weights(run: Path) -> dict[str, str]:
    """Hash everything the last checkpoint holds of the model and of the trainer."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    files = [*last.glob("*.safetensors"), last / "state.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def numbers(run: Path) -> list[dict[str, Any]]:
    """Read the metrics without the clock's."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tiny model in a process of its own: the seed of torch must not leak into other tests."""
    folder = tmp_path_factory.mktemp("model")
    code = f"import pathlib, words; words.save_tiny_model(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPT.parent, timeout=120)
    return folder


@pytest.fixture(scope="module", params=[0, 2], ids=["all weights", "LoRA"])
def lora_rank(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def uninterrupted(model: Path, lora_rank: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without a kill."""
    result = start(model, tmp_path_factory.mktemp("whole"), "none", lora_rank)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.splitlines()[-1])


def test_run_learns_something(uninterrupted: Path) -> None:
    rows = numbers(uninterrupted)
    assert [row["iteration"] for row in rows] == list(range(7))
    assert sum(row["grad_norm"] for row in rows[1:]) > 0
    assert max(abs(row["mismatch/mean_abs_logprob"]) for row in rows[1:]) <= 1e-5


def test_same_seed_gives_the_same_bits(model: Path, lora_rank: int, uninterrupted: Path, tmp_path: Path) -> None:
    result = start(model, tmp_path, "none", lora_rank)
    again = Path(result.stdout.splitlines()[-1])
    assert weights(again) == weights(uninterrupted)
    assert numbers(again) == numbers(uninterrupted)


@pytest.mark.parametrize("phase", ["rollout", "update", "checkpoint"])
def test_killed_run_resumes_bit_for_bit(
    model: Path, lora_rank: int, uninterrupted: Path, tmp_path: Path, phase: str
) -> None:
    killed = start(model, tmp_path, phase, lora_rank)
    assert killed.returncode == -signal.SIGKILL, f"the kill did not happen: {killed.stderr}"
    (run,) = (path for path in tmp_path.iterdir() if (path / "config.yaml").exists())
    assert len(numbers(run)) < 7
    resumed = start(model, tmp_path, "none", lora_rank, run)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(run) == weights(uninterrupted)
    assert numbers(run) == numbers(uninterrupted)


def test_evaluation_plays_with_the_trained_weights(
    lora_rank: int, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(uninterrupted), "--tasks", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # The run's own last evaluation posed the same tasks under the same seed.
    assert found["success"] == numbers(uninterrupted)[-1]["heldout/success"]
