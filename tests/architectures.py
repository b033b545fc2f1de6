"""Tiny random models of transformers' causal architectures, and what AgentFlow makes of each: exact, or refused."""

import asyncio
import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from agentflow.errors import ModelError
from agentflow.messages import Message, Reply
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policy import Sampling
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.forest import lay_out
from agentflow.scoring.interface import logit_rule
from agentflow.scoring.packing import PackedBatch, pack, pack_rows, sampled_logprobs
from agentflow.scoring.rules import AttentionRule
from agentflow.scoring.tree_attention import ForestAttention
from agentflow.trajectory import Completion, Status, Trajectory, Turn, full_sequences

VOCABULARY = 64
TEMPERATURE = 0.7
TOLERANCE = 1e-5
MAX_PARAMETERS = 100_000_000

SHAPES: Mapping[tuple[str, ...], Any] = {
    ("vocab_size", "n_vocab", "src_vocab_size", "vocab_size_per_layer_input"): VOCABULARY,
    ("hidden_size", "n_embd", "d_model", "n_embed", "dim_model", "word_embed_proj_dim"): 32,
    ("embedding_size", "project_dim"): 32,
    ("intermediate_size", "n_inner", "ffn_dim", "dim_ff", "d_ff", "ffn_hidden_size", "intermediate_size_mlp"): 48,
    ("decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "shared_intermediate_size", "mlp_hidden_size"): 48,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"): 4,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"): 4,
    ("encoder_attention_heads",): 4,
    ("num_key_value_heads", "num_kv_heads"): 2,
    ("head_dim", "kv_channels", "d_kv", "dim_head", "attention_head_dim", "global_head_dim"): 8,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"): 128,
    ("sliding_window", "window_size", "sliding_window_size", "attention_window_size"): 6,
    ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"): 4,
    ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"): 2,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"): 16,
    ("first_k_dense_replace", "n_group", "topk_group", "n_shared_experts", "num_shared_experts"): 1,
    ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"): 8,
    ("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"): 0.0,
    ("attention_probs_dropout_prob", "hidden_dropout_prob", "resid_dropout", "activation_dropout"): 0.0,
    ("embd_dropout", "residual_dropout", "summary_first_dropout", "layerdrop", "emb_pdrop", "hidden_dropout_rate"): 0.0,
    ("bos_token_id", "decoder_start_token_id"): 1,
    ("eos_token_id",): 2,
    ("pad_token_id",): 0,
    ("is_decoder",): True,
    ("rotary_dim",): 8,
    ("logits_scaling",): 8.0,
    ("hidden_size_per_layer_input", "laurel_rank"): 8,
    ("num_kv_shared_layers", "num_nextn_predict_layers"): 0,
    ("mamba_d_ssm",): 32,
    ("mamba_n_heads", "mamba_num_heads"): 4,
    ("mamba_d_head", "mamba_head_dim", "mamba_d_state", "ssm_state_size", "state_size"): 8,
}
"""Options that make a model small, under all the names that architectures have for them."""


SPECIAL: Mapping[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2": {"layer_types": ["full_attention", "conv"] * 2},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"num_hidden_layers": 6},
}
"""Options of single architectures that cannot be built with the common ones."""


@dataclass(frozen=True)
class Verdict:
    """What AgentFlow makes of one architecture.

    Attributes:
        name: The model type of transformers.
        architecture: The class.
        dtype: In what it was compared.
        error: The largest difference from transformers in a log-probability, an entropy, or a gradient relative to its
            parameter's largest (at least 1), over forest, rows and sampler; None where it is refused.
        refusal: What AgentFlow said.
        features: What it has beyond a plain transformer.
    """

    name: str
    architecture: str
    dtype: str = ""
    error: float | None = None
    refusal: str = ""
    features: str = ""


class NotTiny(Exception):
    """An architecture whose size the common options do not reach."""


def causal_architectures() -> list[str]:
    """List the model types of transformers that have a causal language model, those alone that take text."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str, **options: Any) -> Any:
    """Build a small config of a model type.

    Args:
        name: The model type.
        options: Stand above the common shapes.
    """
    config = AutoConfig.for_model(name)
    known = (
        config.to_dict().keys() | set(inspect.signature(type(config).__init__).parameters) | config.attribute_map.keys()
    )
    small = {key: value for keys, value in SHAPES.items() for key in keys if key in known}
    if "kv_lora_rank" in known:
        small["num_key_value_heads"] = 4  # latent attention has a key of its own for each head
    small |= SPECIAL.get(name, {})
    if hasattr(config, "text_config") and config.get_text_config() is not config:
        small = {"text_config": tiny_config(config.get_text_config().model_type).to_dict()}
    return type(config)(**small | options)


def tiny_model(name: str, dtype: torch.dtype, **options: Any) -> Any:
    """Build a tiny model, weights drawn by seed 0 and scaled up so that attention is far from uniform."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(name, **options), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5 if parameter.ndim > 1 else 1)
    return model.to(dtype).eval()


def trajectory(exchanges: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> Trajectory:
    """Build a trajectory from (tokens of the last sequence that are kept, context, sampled) for each turn."""
    turns = [
        Turn(
            kept,
            tuple(context),
            Completion(tuple(sampled), (0.0,) * len(sampled), "stop", 0),
            (),
            Reply(Message("assistant")),
        )
        for kept, context, sampled in exchanges
    ]
    return Trajectory("0/task/0", "task", 0, tuple(turns), Status("completed"), True)


def drawn_trajectories() -> list[Trajectory]:
    """Draw trajectories that share prefixes, up to 33 tokens long: beyond every window here; and a much shorter one."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    root, middle = draw(9), draw(6)
    return [
        trajectory([(0, root, draw(5)), (14, draw(4), draw(4))]),
        trajectory([(0, root + middle, draw(7)), (22, draw(3), draw(4)), (17, draw(2), draw(3))]),
        trajectory([(0, root + middle, draw(4)), (19, draw(8), draw(6))]),
        trajectory([(0, draw(3), draw(2))]),
    ]


def plain_scores(model: Any, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
    """Return [S] log-probabilities and [S] entropies, one call of the model as transformers ships it for each turn."""
    logprobs, entropies = [], []
    for full, num_sampled in (turn for one in trajectories for turn in full_sequences(one)):
        logits = model(input_ids=torch.tensor([full]), use_cache=False).logits[0, -num_sampled - 1 : -1]
        table = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / TEMPERATURE, dim=-1)
        logprobs.append(table[torch.arange(num_sampled), torch.tensor(full[-num_sampled:])])
        entropies.append(-(table.exp() * table).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def gradients(model: Any, scores: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Differentiate a loss that weighs every token's log-probability and entropy differently."""
    weights = torch.linspace(-1, 2, len(scores[0]), dtype=scores[0].dtype)
    model.zero_grad(set_to_none=True)
    (weights * scores[0] + weights.flip(0) * scores[1]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of gradients, relative to each parameter's largest entry, and at least to 1."""
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    return max(
        float((actual[name] - one).abs().max()) / max(1.0, float(one.abs().max())) for name, one in expected.items()
    )


def learner_error(reference: Any, model: Any) -> float:
    """Compare forest and rows with the plain forward, in values and in gradients."""
    trajectories = drawn_trajectories()
    expected = plain_scores(reference, trajectories)
    expected_gradients = gradients(reference, expected)
    errors: list[float] = []
    for batch in (pack(trajectories), pack_rows(trajectories)):
        actual = forest_scores(model, batch)
        errors += [float((ours - theirs).abs().max()) for ours, theirs in zip(actual, expected, strict=True)]
        errors.append(distance(gradients(model, actual), expected_gradients))
    return max(errors)


def forest_scores(model: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Score a batch at the temperature of these comparisons."""
    return sampled_logprobs(model, batch, temperature=TEMPERATURE)


def sampler_error(reference: Any, model: Any) -> float:
    """Compare what the in-process policy says of its own samples with the plain forward: 4 episodes of 3 turns."""
    policy = TransformersPolicy(model, [], max_length=60)
    played: list[tuple[list[int], Completion]] = []

    async def play(session: int) -> None:
        transcript = [3 + session, 4, 5, 6, 7, 8, 9, 10][: 4 + session]
        for turn in range(3):
            sampling = Sampling(TEMPERATURE, max_tokens=4 + session, seed=10 * session + turn)
            completion = await policy.generate(transcript, sampling, session=str(session))
            played.append((list(transcript), completion))
            transcript += [*completion.token_ids, *range(20, 22 + turn)]
        policy.release(str(session))

    async def play_all() -> None:
        await asyncio.gather(*(play(session) for session in range(4)))

    asyncio.run(play_all())
    turns = [trajectory([(0, prompt, completion.token_ids)]) for prompt, completion in played]
    with torch.no_grad():
        expected, _ = plain_scores(reference, turns)
    actual = torch.tensor([logprob for _, completion in played for logprob in completion.logprobs])
    return float((actual - expected).abs().max())


def judge(name: str) -> Verdict:
    """Build one architecture and compare, or say why it is refused.

    Raises:
        NotTiny: The model cannot be made small.
        Exception: Whatever transformers raises where the tiny model cannot be built or run at all.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(tiny_config(name))
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if num_parameters > MAX_PARAMETERS:
        raise NotTiny(f"{num_parameters / 1e6:.0f} million parameters at the least")
    dtype = torch.float64
    try:
        reference = tiny_model(name, dtype)
        run_alone(reference)
    except Exception:  # noqa: BLE001  float64 is no dtype of every architecture
        dtype = torch.float32
        reference = tiny_model(name, dtype)
        run_alone(reference)
    architecture = type(reference).__name__
    model = copy.deepcopy(reference)
    try:
        use_agentflow_attention(model)
    except ModelError as refusal:
        return Verdict(name, architecture, refusal=refusal.problem)
    error = max(learner_error(reference, model), sampler_error(reference, model))
    return Verdict(name, architecture, str(dtype).removeprefix("torch."), error, features=features_of(model))


@torch.no_grad()
def run_alone(model: Any) -> None:
    """Run a row through a model as transformers ships it."""
    model(input_ids=torch.arange(3, 12)[None], use_cache=False)


class _Noting(ForestAttention):
    """The layout of one row, which notes how its layers attend."""

    def __init__(self, length: int) -> None:
        super().__init__(lay_out([length], [0]), torch.device("cpu"))
        self.rules: list[AttentionRule] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, rule: AttentionRule) -> Tensor:
        self.rules.append(rule)
        return super().attend(query, key, value, layer=layer, rule=rule)


@torch.no_grad()
def features_of(model: Any) -> str:
    """Name what a switched model has beyond a plain transformer."""
    layout = _Noting(9)
    model.get_decoder()(
        input_ids=torch.arange(3, 12)[None],
        position_ids=torch.arange(9)[None],
        attention_layout=layout,
        use_cache=False,
    )
    windows = [rule.window for rule in layout.rules]
    logits = logit_rule(model).kind
    found = {
        "windows": all(windows),
        "windows in some layers": any(windows) and not all(windows),
        "soft cap of scores": any(rule.softcap is not None for rule in layout.rules),
        "sinks": any(rule.sinks is not None for rule in layout.rules),
        "soft cap of logits": logits == "cap",
        "scaled logits": logits in ("multiply", "divide"),
        "latent attention": hasattr(model.config.get_text_config(), "kv_lora_rank"),
        "experts": any("expert" in word for word, _ in model.named_parameters()),
    }
    return ", ".join(word for word, has in found.items() if has)
