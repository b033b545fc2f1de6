"""Measure an update of a 0.6-billion-parameter model on a GPU: tokens/s, share of the peak, memory; forest and rows.

    python -m tests.benchmarks.gpu [--prompts 1000 4000] [--private 2000] [--repeats 3] [--save-model FOLDER]

The model has the shape of Qwen3-0.6B, random bfloat16 weights and recomputed activations. An update is a forward and a
backward over eight trajectories of five turns that share a prompt; sides alternate, medians are reported. Work is
counted as 6 floating-point operations a parameter and computed token, and 12 a layer, feature of the attention and pair
of query and key within a path (what is recomputed is not counted). `--tiny` runs anywhere: it tries the script, and
its figures mean nothing.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentflow.models import ModelConfig, load_model
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.packing import PackedBatch
from tests.benchmarks.forest import SIDES, group, passes, update_s

PEAK_FLOPS: Final = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 operations a second of GPUs, by a part of their names."""
SHAPE: Final[dict[str, Any]] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY: Final[dict[str, Any]] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def built(shape: dict[str, Any], device: str) -> Any:
    """Build the model on a device, weights drawn by seed 0."""
    torch.manual_seed(0)
    config = Qwen3Config(**shape, max_position_embeddings=40_960, tie_word_embeddings=True)
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]
    return model.to(torch.bfloat16)


def operations(model: Any, batches: Sequence[PackedBatch]) -> float:
    """Count the floating-point operations of forward and backward, attention within paths included."""
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    tokens = sum(batch.num_unique_tokens for batch in batches)
    pairs = sum(int(batch.position_ids.sum()) + batch.num_unique_tokens for batch in batches)
    return 6.0 * parameters * tokens + 12.0 * width * pairs


def measured(model: Any, prompt: int, options: argparse.Namespace) -> list[str]:
    """Return the lines of the table for one length of the prompt."""
    trajectories = group(prompt, options.private)
    batches = {side: passes(side, trajectories) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks = dict.fromkeys(SIDES, 0.0)
    for _ in range(options.repeats + 1):  # the first compiles and is left out
        for side in SIDES:
            seconds[side].append(timed(model, batches[side]))
            peaks[side] = peak_gigabytes(model)
    return [
        line(model, side, prompt, batches[side], seconds=statistics.median(seconds[side][1:]), gigabytes=peaks[side])
        for side in SIDES
    ]


def timed(model: Any, batches: Sequence[PackedBatch]) -> float:
    """Return the seconds of an update, the device's work included."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    update_s(model, batches)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_gigabytes(model: Any) -> float:
    """Return the most memory that tensors had on the device since the last update began; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if model.device.type == "cuda" else 0.0


def line(
    model: Any, side: str, prompt: int, batches: Sequence[PackedBatch], *, seconds: float, gigabytes: float
) -> str:
    """Return one line of the table: row tokens a second are what both sides are paid for."""
    name = torch.cuda.get_device_name() if model.device.type == "cuda" else ""
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    share = "unknown" if peak is None else f"{operations(model, batches) / seconds / peak:.0%}"
    row_tokens = sum(batch.num_row_tokens for batch in batches)
    unique = sum(batch.num_unique_tokens for batch in batches)
    cells = [side, str(prompt), str(row_tokens), str(unique), f"{seconds:.3f}", f"{row_tokens / seconds:,.0f}"]
    return "| " + " | ".join([*cells, share, f"{gigabytes:.1f}"]) + " |"


def main(words: Sequence[str] | None = None) -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--private", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save-model", type=Path, help="Also save the model, with a starter's tokenizer, there.")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(words)
    device = "cpu" if options.tiny else "cuda"
    model = built(TINY if options.tiny else SHAPE, device)
    if options.save_model:
        model.save_pretrained(options.save_model)
        load_model(ModelConfig(device="cpu"), env="websearch").tokenizer.save_pretrained(options.save_model)
    use_agentflow_attention(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    where = "a CPU, for a trial" if options.tiny else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {where}\n")
    print("| side | prompt | row tokens | computed tokens | s | row tokens/s | share of peak | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for prompt in options.prompts:
        print("\n".join(measured(model, prompt, options)), flush=True)


if __name__ == "__main__":
    main()
