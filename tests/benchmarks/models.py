"""Judge every causal architecture of transformers on a tiny random model: exact to 1e-5, or refused by name.

    python -m tests.benchmarks.models [--write docs/models.md] [NAME ...]

Forest, rows and the in-process sampler are compared with transformers' own plain forward, log-probabilities, entropies
and gradients, in float64 where the architecture runs in it. The exit code is 1 if any model is neither exact nor
refused. With `--write` the tables of a page are replaced.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from tests.architectures import TOLERANCE, Verdict, causal_architectures, judge

BEGIN, END = "<!-- begin: tests/benchmarks/models.py -->", "<!-- end -->"


def judge_all(names: Sequence[str]) -> tuple[list[Verdict], dict[str, str]]:
    """Return the verdicts, and for each architecture that could not be built or run at all, why."""
    verdicts: list[Verdict] = []
    unbuilt: dict[str, str] = {}
    for name in names:
        try:
            verdicts.append(judge(name))
        except Exception as error:  # noqa: BLE001  whatever transformers raises for a config of its own
            unbuilt[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
        print(name, unbuilt.get(name) or verdicts[-1].refusal or verdicts[-1].error, file=sys.stderr, flush=True)
    return verdicts, unbuilt


def is_wrong(verdict: Verdict) -> bool:
    """Return whether a model is neither exact nor refused."""
    return verdict.error is not None and not verdict.error <= TOLERANCE


def tables(verdicts: Sequence[Verdict], unbuilt: dict[str, str]) -> str:
    """Write the verdicts as Markdown."""
    exact = [verdict for verdict in verdicts if verdict.error is not None]
    refused = [verdict for verdict in verdicts if verdict.error is None]
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}: "
        f"{len(exact)} exact, {len(refused)} refused.",
        "",
        "| model type | class | beyond a plain transformer | compared in | largest error |",
        "|---|---|---|---|---|",
        *(f"| {v.name} | {v.architecture} | {v.features} | {v.dtype} | {v.error:.0e} |" for v in exact),
        "",
        "| model type | refused because |",
        "|---|---|",
        *(f"| {v.name} | {v.refusal} |" for v in refused),
        "",
        f"Not built small with one set of options, so not judged here: {', '.join(sorted(unbuilt))}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Print or write the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    verdicts, unbuilt = judge_all(options.names or causal_architectures())
    text = tables(verdicts, unbuilt)
    if options.write:
        page = options.write.read_text()
        before, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    else:
        print(text)
    return int(any(is_wrong(verdict) for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
