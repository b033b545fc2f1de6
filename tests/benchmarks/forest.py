"""Compare one update on the forest with one on ordinary rows: time, peak memory, and the same gradient.

    python tests/benchmarks/forest.py [--threads 2] [--repeats 5] [--prompts 1000 4000] [--private 500]

Both sides run the same model, the same attention kernels and the same scoring; only the sharing differs. The forest is
one pass; rows are cut into passes of at most as many tokens, which on a CPU is faster than all of them at once. Sides
alternate, medians are reported. Peak memory is measured in a fresh process for each side.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from agentflow.messages import Message, Reply
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.packing import PackedBatch, pack, pack_rows, sampled_logprobs
from agentflow.trajectory import Completion, Status, Trajectory, Turn

SIDES = ("rows", "forest")
VOCABULARY = 2048


def small_qwen3() -> PreTrainedModel:
    """Build the 3.7-million-parameter Qwen3 of the comparison, float32, weights drawn by seed 0."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(  # type: ignore[no-untyped-call]
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        )
    )
    use_agentflow_attention(model)
    return model


def group(prompt_tokens: int, private_tokens: int, *, size: int = 8, turns: int = 5) -> list[Trajectory]:
    """Draw a group that shares a prompt; each turn appends an observation and a sampled half of equal length."""
    random = np.random.default_rng(0)

    def draw(num_tokens: int) -> tuple[int, ...]:
        return tuple(random.integers(0, VOCABULARY, num_tokens).tolist())

    prompt = draw(prompt_tokens)
    half = private_tokens // (2 * turns)
    trajectories = []
    for index in range(size):
        records: list[Turn] = []
        length = 0
        for turn in range(turns):
            context = (prompt if turn == 0 else ()) + draw(half)
            completion = Completion(draw(half), (0.0,) * half, "stop", 0)
            records.append(Turn(length, context, completion, (), Reply(Message("assistant"))))
            length += len(context) + half
        trajectories.append(Trajectory(f"0/task/{index}", "task", 0, tuple(records), Status("completed"), True))
    return trajectories


def passes(side: str, trajectories: Sequence[Trajectory]) -> list[PackedBatch]:
    """Pack equally long trajectories into the passes of one side."""
    forest = pack(trajectories)
    if side == "forest":
        return [forest]
    size = max(1, forest.num_unique_tokens * len(trajectories) // forest.num_row_tokens)
    return [pack_rows(trajectories[start : start + size]) for start in range(0, len(trajectories), size)]


def update_s(model: PreTrainedModel, batches: Sequence[PackedBatch]) -> float:
    """Return the seconds of forward and backward over every sampled token."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    for batch in batches:
        logprobs, _ = sampled_logprobs(model, batch, temperature=1.0)
        (-logprobs.sum()).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def peak_megabytes(side: str, prompt: int, private: int, threads: int) -> float:
    """Return the peak resident memory that one update adds, in a process of its own."""
    words = [sys.executable, __file__, "--peak", side, "--prompts", str(prompt)]
    words += ["--private", str(private), "--threads", str(threads)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def high_water_megabytes() -> float:
    """Return the largest resident set that this process has had (Linux; getrusage would inherit the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_peak(side: str, prompt: int, private: int) -> None:
    """Print the megabytes that one update adds to this process's peak."""
    model = small_qwen3()
    batches = passes(side, group(prompt, private))
    before = high_water_megabytes()
    update_s(model, batches)
    print(high_water_megabytes() - before)


def compare(model: PreTrainedModel, prompt: int, options: argparse.Namespace) -> str:
    """Return one line of the table."""
    trajectories = group(prompt, options.private)
    batches = {side: passes(side, trajectories) for side in SIDES}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.repeats + 1):  # the first is a warm-up
        for side in SIDES:
            times[side].append(update_s(model, batches[side]))
    rows_s, forest_s = (statistics.median(times[side][1:]) for side in SIDES)
    rows_mb, forest_mb = (peak_megabytes(side, prompt, options.private, options.threads) for side in SIDES)
    forest = batches["forest"][0]
    ratio = forest.num_row_tokens / forest.num_unique_tokens
    cells = [f"{prompt} + 8 x {options.private}", f"{ratio:.2f}", f"{rows_s:.2f}", f"{forest_s:.2f}"]
    cells += [f"{rows_s / forest_s:.2f}", f"{rows_s / forest_s / ratio:.2f}", f"{rows_mb:.0f}", f"{forest_mb:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table of the comparison in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--private", type=int, default=500)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        measure_peak(options.peak, options.prompts[0], options.private)
        return
    model = small_qwen3()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {options.threads} threads")
    print("| tokens | token ratio | rows s | forest s | speed-up | of ratio | rows peak MB | forest peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for prompt in options.prompts:
        print(compare(model, prompt, options), flush=True)


if __name__ == "__main__":
    main()
