"""A run's folder: everything a run leaves behind, written so that SIGKILL at any moment leaves it resumable.

    runs/<env>--<model>--<time>/
        config.yaml   the resolved configuration          env.json   versions, platform, seed
        metrics.jsonl one object an iteration             tensorboard/
        rollouts/iteration_000012.jsonl.zst               checkpoints/iteration_000012/
        mismatch/iteration_000012.json   where sampler and learner differed most

Checkpoint n is the state after iteration n, so resuming from it keeps the metrics and rollouts up to n and drops
the rest. Before the first checkpoint a run resumes from its beginning.
"""

from agentflow.runs.records import read_groups, write_groups
from agentflow.runs.storage import new_folder, storing, write_file
from agentflow.runs.stored import Checkpoint, Metrics, StoredRun
from agentflow.runs.writer import RUN_NOTE, Run

__all__ = [
    "RUN_NOTE",
    "Checkpoint",
    "Metrics",
    "Run",
    "StoredRun",
    "new_folder",
    "read_groups",
    "storing",
    "write_file",
    "write_groups",
]
