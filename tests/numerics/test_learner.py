"""The learner: what an update does to the weights, in both precisions, with and without recomputation."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from agentflow.errors import RunAborted
from agentflow.messages import Message, Reply
from agentflow.models import ModelConfig, load_model
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.packing import pack, sampled_logprobs, split
from agentflow.trainers.algorithm import load_recipe
from agentflow.trainers.drift import Drift
from agentflow.trainers.engines.base import LearnerConfig
from agentflow.trajectory import Completion, Status, Trajectory, Turn
from tests.numerics.learning import Learner, Sample

VOCABULARY = 40


def tiny(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    model = Qwen3ForCausalLM(config)
    model.to(dtype)  # type: ignore[arg-type]
    use_agentflow_attention(model)
    return model.eval()


def samples(count: int = 4, *, seed: int = 0) -> list[Sample]:
    """Trajectories of two turns with advantages of both signs."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        turns: list[Turn] = []
        length = 0
        for _ in range(2):
            context = tuple(int(t) for t in rng.integers(2, VOCABULARY, 5))
            tokens = tuple(int(t) for t in rng.integers(2, VOCABULARY, 3))
            completion = Completion(tokens, (-3.5,) * 3, "stop", 0)
            turns.append(Turn(length, context, completion, (), Reply(Message("assistant", "x"))))
            length += 8
        trajectory = Trajectory(str(i), "task", i, tuple(turns), Status("completed"), success=True)
        found.append(Sample(trajectory, np.full(2, 1.0 if i % 2 else -1.0)))
    return found


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def learner_of(model: PreTrainedModel, **options: Any) -> Learner:
    return Learner(model, LearnerConfig(**options), num_updates=100)


def test_small_steps_add_up_in_bfloat16() -> None:
    coarse, fine = tiny(torch.bfloat16), tiny(torch.bfloat16).float()
    before = weights(coarse)
    for model in (coarse, fine):
        learner = learner_of(model, learning_rate=1e-5)
        for _ in range(100):
            learner.imitate([sample.trajectory for sample in samples()])
    # One step is below half the spacing of bfloat16 at the weights' usual size: without float32 copies none would show.
    moved, expected = weights(coarse) - before, weights(fine) - before
    assert (moved != 0).float().mean() > 0.3
    large = expected.abs() > 5e-4
    assert torch.sign(moved[large & (moved != 0)]).eq(torch.sign(expected[large & (moved != 0)])).float().mean() > 0.95


def test_float32_copies_continue_bit_for_bit() -> None:
    batch = [sample.trajectory for sample in samples()]
    whole, half = tiny(torch.bfloat16), tiny(torch.bfloat16)
    first, second = learner_of(whole, learning_rate=1e-5), learner_of(half, learning_rate=1e-5)
    for _ in range(3):
        first.imitate(batch)
        second.imitate(batch)
    resumed_model = tiny(torch.bfloat16)
    resumed_model.load_state_dict(half.state_dict())
    resumed = learner_of(resumed_model, learning_rate=1e-5)
    resumed.load_state_dict(second.state_dict())
    for _ in range(30):
        first.imitate(batch)
        resumed.imitate(batch)
    assert torch.equal(weights(whole), weights(resumed_model))


@pytest.fixture
def starters() -> Iterator[tuple[PreTrainedModel, PreTrainedModel]]:
    plain = load_model(ModelConfig()).model
    recomputing = load_model(ModelConfig(gradient_checkpointing=True)).model
    yield plain, recomputing


def test_gradient_checkpointing_recomputes_and_changes_nothing(
    starters: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    calls = []
    for model in starters:
        count = [0]
        layer: Any = model.get_decoder().layers[0].mlp  # type: ignore[no-untyped-call]
        layer.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        learner_of(model, learning_rate=1e-3).imitate([sample.trajectory for sample in samples()])
        calls.append(count[0])
    assert calls == [1, 2]
    torch.testing.assert_close(weights(starters[0]), weights(starters[1]), rtol=0, atol=1e-6)


def test_gradient_that_is_not_finite_is_left_out_counted_and_stops_the_run() -> None:
    model = tiny()
    with torch.no_grad():
        model.get_decoder().norm.weight[0] = float("nan")  # type: ignore[no-untyped-call]
    before = weights(model)
    learner = learner_of(model, learning_rate=1e-2)
    batch = [sample.trajectory for sample in samples()]
    for _ in range(4):
        stats = learner.imitate(batch)
        assert (stats.num_skipped, stats.grad_norm) == (1, None)
    assert torch.equal(weights(model).nan_to_num(), before.nan_to_num())
    with pytest.raises(RunAborted, match="not finite in 5 updates in a row"):
        learner.imitate(batch)


@pytest.mark.parametrize("updates", [1, 2])
def test_losses_are_means_over_updates(updates: int) -> None:
    algorithm = load_recipe("flow-grpo", {"loss": {"kl": {"coefficient": 0.1}, "entropy": {"coefficient": 0.01}}})
    model = tiny()
    learner = Learner(
        model,
        LearnerConfig(learning_rate=1e-9, updates_per_iteration=updates),
        num_updates=10,
        with_reference=True,
    )
    # The same four trajectories in each update, and weights that hardly move: the mean of two is the one.
    batch = samples() if updates == 1 else samples() + samples()
    means = learner.update(batch, algorithm).metrics
    alone = Learner(tiny(), LearnerConfig(learning_rate=1e-9), num_updates=10, with_reference=True)
    expected = alone.update(samples(), algorithm).metrics
    for name in ("loss", "loss/policy", "loss/kl", "loss/entropy", "entropy"):
        assert means[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("unit", ["token", "turn", "turn_mean", "sequence", "sequence_mean"])
@pytest.mark.parametrize("mismatch", ["tis", "icepop", "mis"])
def test_cutting_and_order_of_a_batch_change_no_mismatch_correction(mismatch: str, unit: str) -> None:
    options = {"unit": unit, "high": 1.02, **({"low": 0.9} if mismatch != "tis" else {})}
    changes: dict[str, Any] = {"loss": {"clipped": {"correction": {"kind": mismatch, **options}}}}
    if mismatch == "mis":
        changes = {"weights": {"masks": {"mismatched": options}}}
    algorithm = load_recipe("flow-grpo", changes)
    batch = sampled_by(perturbed(0.1), samples(6))
    stats = learner_of(tiny()).update(batch, algorithm)
    # The correction binds, and the batch is cut: otherwise nothing is compared.
    plain = learner_of(tiny()).update(batch, load_recipe("flow-grpo"))
    assert stats.grad_norm != pytest.approx(plain.grad_norm, rel=1e-3)
    assert len(split([sample.trajectory for sample in batch], 20)) >= 3
    cut = learner_of(tiny(), max_tokens=20).update(batch, algorithm)
    turned = learner_of(tiny()).update(batch[::-1], algorithm)
    for name, value in stats.metrics.items():
        if value is None or name.startswith("tokens/"):
            continue
        assert cut.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert turned.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert cut.grad_norm == pytest.approx(stats.grad_norm, rel=1e-4)
    assert turned.grad_norm == pytest.approx(stats.grad_norm, rel=1e-4)


def sampled_by(model: PreTrainedModel, batch: list[Sample], *, versions: Sequence[int] = (0, 0)) -> list[Sample]:
    """Give the samples the log-probs that a model has for their tokens, each turn under a version of its own."""
    packed = pack([sample.trajectory for sample in batch])
    with torch.no_grad():
        logprobs = iter(sampled_logprobs(model, packed, temperature=1.0)[0].tolist())
    found = []
    for sample in batch:
        turns = []
        for turn, version in zip(sample.trajectory.turns, versions, strict=True):
            own = tuple(itertools.islice(logprobs, len(turn.completion.token_ids)))
            turns.append(replace(turn, completion=replace(turn.completion, logprobs=own, policy_version=version)))
        found.append(replace(sample, trajectory=replace(sample.trajectory, turns=tuple(turns))))
    return found


def perturbed(scale: float) -> PreTrainedModel:
    model = tiny()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("options", [{}, {"max_tokens": 20}, {"updates_per_iteration": 3}], ids=str)
def test_drift_is_that_of_the_weights_an_iteration_starts_from(options: dict[str, Any]) -> None:
    """Whatever the cutting and however many updates follow: they move the weights far, and the drift not at all."""
    algorithm = load_recipe("flow-grpo")
    own = learner_of(tiny(), learning_rate=0.1, **options).update(sampled_by(tiny(), samples(6)), algorithm).drift
    assert own.max_abs is not None and own.max_abs <= 1e-5
    other = sampled_by(perturbed(0.1), samples(6))
    drift = learner_of(tiny(), learning_rate=0.1, **options).update(other, algorithm).drift
    theirs = [x for sample in other for turn in sample.trajectory.turns for x in turn.completion.logprobs]
    ours = [x for s in sampled_by(tiny(), samples(6)) for turn in s.trajectory.turns for x in turn.completion.logprobs]
    d = np.array(ours) - np.array(theirs)
    assert drift.mean_abs == pytest.approx(np.abs(d).mean(), abs=1e-6)
    assert drift.max_abs == pytest.approx(np.abs(d).max(), abs=1e-6)
    assert drift.k3 == pytest.approx((np.exp(d) - d - 1).mean(), abs=1e-6)
    means = np.abs(d).reshape(6, 6).mean(axis=1)
    assert drift.worst is not None and drift.worst.trajectory.id == str(means.argmax())
    assert drift.worst.learner_logprobs_S == pytest.approx(np.array(ours).reshape(6, 6)[means.argmax()], abs=1e-6)


def test_drift_is_measured_without_a_pass_of_its_own() -> None:
    model = tiny()
    calls = []
    model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[no-untyped-call]
    learner_of(model).update(samples(4), load_recipe("flow-grpo"))
    assert len(calls) == 1


def test_what_heeds_the_drift_can_keep_the_weights_from_being_updated() -> None:
    model = tiny()
    before = weights(model)

    def refuse(drift: Drift) -> None:
        raise RunAborted(f"{drift.mean_abs}")

    learner = learner_of(model, learning_rate=0.1)
    with pytest.raises(RunAborted):
        learner.update(samples(), load_recipe("flow-grpo"), heed=refuse)
    assert torch.equal(weights(model), before)
    assert learner.num_updates_done == 0


def test_tokens_of_older_weights_are_counted_apart() -> None:
    mixed = sampled_by(tiny(), samples(), versions=(6, 7))
    stale = sampled_by(perturbed(0.1), samples(), versions=(6, 7))
    batch = [
        replace(new, trajectory=replace(new.trajectory, turns=(old.trajectory.turns[0], new.trajectory.turns[1])))
        for new, old in zip(mixed, stale, strict=True)
    ]
    algorithm = load_recipe("flow-grpo")
    drift = learner_of(tiny()).update(batch, algorithm, version=7).drift
    assert drift.max_abs is not None and drift.max_abs <= 1e-5
    assert drift.stale_mean_abs is not None and drift.stale_mean_abs > 0.01
    together = learner_of(tiny()).update(batch, algorithm).drift
    assert together.mean_abs == pytest.approx(drift.stale_mean_abs / 2, rel=1e-3)
    assert together.stale_mean_abs is None
    none = learner_of(tiny()).update(batch, algorithm, version=8).drift
    assert (none.mean_abs, none.max_abs, none.k3, none.worst) == (None, None, None, None)
