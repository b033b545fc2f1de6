"""AgentFlow: reinforcement learning for language-model agents that use tools over many turns.

    import agentflow

    run = agentflow.train("websearch")
    agentflow.evaluate(run.path).success

Importing it costs nothing: `train`, `evaluate`, `load_run` and `load_recipe` load torch when they are first looked up.
"""

from typing import TYPE_CHECKING, Any

from agentflow.version import __version__

if TYPE_CHECKING:
    from agentflow.api import evaluate, load_recipe, load_run, train


__all__ = ["__version__", "evaluate", "load_recipe", "load_run", "train"]
_LAZY = frozenset(__all__[1:])


def __getattr__(name: str) -> Any:
    """Look a function of the Python interface up."""
    if name not in _LAZY:
        raise AttributeError(f"module 'agentflow' has no attribute {name!r}")
    from agentflow import api  # noqa: PLC0415  `agentflow --help` must not import torch

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
