"""What another machine would have to match to repeat a run."""

import importlib.metadata
import os
import platform
from typing import Any

from agentflow.version import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "gymnasium", "numpy", "pydantic", "peft", "vllm", "deepspeed")


def machine_facts(seed: int) -> dict[str, Any]:
    """Return the versions, the platform and the seed of a run; no secrets, no paths, no host name."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "agentflow": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "seed": seed,
    }
