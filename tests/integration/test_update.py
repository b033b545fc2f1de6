"""What a run does to its weights, read from what it leaves: nothing here knows how the trainer is built.

Without moments (`beta1 = beta2 = 0`) AdamW moves each weight by `rate * g / (|g| + 1e-8)`: the largest move is the
learning rate, and under a tiny bound of the norm the moves give the gradient away.
"""

import math
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agentflow.cli import main
from agentflow.runs import StoredRun
from agentflow.trajectory import Completion, Trajectory, full_sequences
from tests.integration.words import save_tiny_model

ENVIRONMENT = f"{Path(__file__).parent / 'words.py'}:Varied"
RATE = 1e-2
WITHOUT_MOMENTS = ("learner.beta1=0", "learner.beta2=0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), brief=True)


def run_of(model: Path, out: Path, *options: str) -> Path:
    """Train in float32 with one update an iteration and a checkpoint of each; the run's folder."""
    words = [
        *("train", "--env", ENVIRONMENT, "--model", str(model), "--out", str(out), "model.dtype=float32"),
        *("run.tasks_per_iteration=2", "run.group_size=8", "run.checkpoint_every=1", "run.keep_checkpoints=99"),
        *("agent.max_turn_tokens=16", "evaluation.num_tasks=0", f"learner.learning_rate={RATE}", *options),
    ]
    assert main(words) == 0
    (folder,) = out.iterdir()
    return folder


def path_of(model: Path, run: Path) -> list[Path]:
    """Return the folders of the first weights and of those after each update."""
    return [model, *sorted((run / "checkpoints").iterdir())]


def weights(folder: Path) -> torch.Tensor:
    (file,) = folder.glob("*.safetensors")
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(file).items())])


def moves(model: Path, run: Path) -> list[torch.Tensor]:
    """Return how far each update moved every weight."""
    path = [weights(folder) for folder in path_of(model, run)]
    return [after - before for before, after in pairwise(path)]


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ((), [1, 1, 1, 1]),
        (("learner.schedule=linear",), [1, 3 / 4, 2 / 4, 1 / 4]),
        (("learner.schedule=cosine", "learner.warmup_updates=2"), [1 / 2, 1, 1, 1 / 2]),
    ],
    ids=["constant", "linear", "cosine after a warm-up"],
)
def test_each_update_goes_as_far_as_its_learning_rate(
    model: Path, tmp_path: Path, options: tuple[str, ...], shares: list[float]
) -> None:
    run = run_of(model, tmp_path, "run.iterations=4", *WITHOUT_MOMENTS, *options)
    farthest = [float(move.abs().max()) for move in moves(model, run)]
    assert farthest == pytest.approx([share * RATE for share in shares], rel=1e-3)
    assert [row["learning_rate"] for row in StoredRun(run).metrics()[1:]] == pytest.approx(farthest, rel=1e-3)


def test_second_moment_decays_by_beta2(model: Path, tmp_path: Path) -> None:
    """A weight whose gradient comes late moves `sqrt(1 + b + b^2 + ...)` learning rates: its mean square was small."""
    run = run_of(model, tmp_path, "run.iterations=3", "learner.beta1=0", "learner.beta2=0.5")
    farthest = [float(move.abs().max()) / RATE for move in moves(model, run)]
    assert farthest == pytest.approx([1, math.sqrt(1.5), math.sqrt(1.75)], rel=0.01)


def test_gradient_is_clipped_to_its_bound(model: Path, tmp_path: Path) -> None:
    run = run_of(model, tmp_path, "run.iterations=1", "learner.max_grad_norm=1e-8", *WITHOUT_MOMENTS)
    (move,) = moves(model, run)
    gradient = 1e-8 * move / (RATE - move.abs())
    assert float(gradient.norm()) == pytest.approx(1e-8, rel=0.01)
    assert StoredRun(run).metrics()[1]["grad_norm"] > 1e-3


def played(run: Path, iteration: int) -> list[Trajectory]:
    return [trajectory for group in StoredRun(run).groups(iteration) for trajectory in group.trajectories]


def said(run: Path, iteration: int) -> list[Completion]:
    """Return every turn that an iteration sampled."""
    return [turn.completion for trajectory in played(run, iteration) for turn in trajectory.turns]


def logprobs_of(folder: Path, run: Path, iteration: int, *, temperature: float) -> torch.Tensor:
    """Score what an iteration sampled with the model of a folder: one plain forward pass a trajectory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids, num_sampled in chain.from_iterable(map(full_sequences, played(run, iteration))):
        tokens = torch.tensor(ids)
        with torch.no_grad():
            logprobs = (model(tokens[None]).logits[0, :-1] / temperature).log_softmax(-1)
        found.append(logprobs.gather(-1, tokens[1:, None])[-num_sampled:, 0])
    return torch.cat(found).double()


def test_learner_scores_at_the_temperature_and_the_reference_stays_where_the_run_began(
    model: Path, tmp_path: Path
) -> None:
    run = run_of(model, tmp_path, "run.iterations=3", "policy.temperature=0.6", "algorithm.loss.kl.coefficient=0.01")
    first, *later = path_of(model, run)
    for iteration, (row, weights_before) in enumerate(
        zip(StoredRun(run).metrics()[1:], [first, *later], strict=False), start=1
    ):
        current_S = logprobs_of(weights_before, run, iteration, temperature=0.6)
        sampled = [logprob for completion in said(run, iteration) for logprob in completion.logprobs]
        assert sampled == pytest.approx(current_S.tolist(), abs=1e-4)
        assert row["mismatch/max_abs_logprob"] < 1e-4
        assert row["tokens/trained"] == len(sampled)
        d = logprobs_of(first, run, iteration, temperature=0.6) - current_S
        assert row["kl/reference"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-3, abs=1e-6)
        assert (row["kl/reference"] > 0.01) == (iteration > 1)


EVALUATED = ("run.iterations=1", "evaluation.num_tasks=8", "agent.max_turns=20", "agent.max_turn_tokens=50")


@pytest.fixture(scope="module")
def evaluated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated first: on tasks whose answers are all right, and of which each fourth breaks."""
    return run_of(model, tmp_path_factory.mktemp("evaluated"), *EVALUATED)


def test_failed_episodes_do_not_count_as_unsolved(evaluated: Path) -> None:
    assert StoredRun(evaluated).metrics()[0]["heldout/success"] == 1.0


def test_shuffled_rewards_teach_something_else_from_the_same_episodes(
    model: Path, evaluated: Path, tmp_path: Path
) -> None:
    shuffled = run_of(model, tmp_path, *EVALUATED, "run.shuffle_rewards=true")
    assert said(shuffled, 1) == said(evaluated, 1)
    taught, control = (moves(model, run)[0] for run in (evaluated, shuffled))
    assert min(float(taught.norm()), float(control.norm())) > RATE
    assert float(torch.nn.functional.cosine_similarity(taught, control, dim=0)) < 0.9
