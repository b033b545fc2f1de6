"""The starter policies that ship with AgentFlow; each says in its `agentflow.yaml` what it has learned to play.

plays:
  - {env: websearch}                          # agent: react, role: planner
  - {env: planner, agent: team, role: sub}
  - {env: any}                                # where no other starter fits: expect little of it
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from agentflow.config import Config, read_yaml, validate_options
from agentflow.roles import PLANNER

STARTER = "starter"
"""Stands for the starter policy of what is played."""
RECOMMENDED = "agentflow.yaml"
"""The file in a model's folder that says how to train it on, and what it plays."""
REACT = "react"
"""The agent that is played where nobody names one."""
_PLAYS = "plays"
_ANY = "any"
_FOLDER = Path(__file__).parent / "starters"


class Part(Config):
    """What a policy has learned to play."""

    env: str = Field(description="The environment's registered name, or `any`.")
    agent: str = Field(REACT, description="The agent.")
    role: str = Field(PLANNER, description="Its role in the agent.")


@lru_cache(maxsize=1)
def starter_folders() -> Mapping[str, Path]:
    """Return the folder of each starter policy, by name."""
    folders = sorted(file.parent for file in _FOLDER.glob(f"*/{RECOMMENDED}"))
    return MappingProxyType({f"starter-{folder.name}": folder for folder in folders})


def parts_of(folder: Path) -> tuple[Part, ...]:
    """Read what the policy in a folder has learned to play; nothing where the folder does not say.

    Raises:
        ConfigError: What stands there is no list of parts.
    """
    file = folder / RECOMMENDED
    found = read_yaml(file).get(_PLAYS, ()) if file.is_file() else ()
    return tuple(validate_options(Part, part, owner=f"{file}: plays") for part in found)


def starter_for(path: str, part: Part) -> str:
    """Return the starter policy that `starter` stands for; any other model as it is."""
    return _starter_of(part) if path == STARTER else path


def is_learned(part: Part) -> bool:
    """Say whether a starter policy has learned to play this part."""
    return part in parts_of(starter_folders()[_starter_of(part)])


def recommended(folder: Path) -> dict[str, Any]:
    """Read what the policy in a folder recommends for its own training; empty where it recommends nothing.

    Raises:
        ConfigError: The file is no YAML mapping.
    """
    file = folder / RECOMMENDED
    found = read_yaml(file) if file.is_file() else {}
    return {name: value for name, value in found.items() if name != _PLAYS}


def _starter_of(part: Part) -> str:
    parts = {name: parts_of(folder) for name, folder in starter_folders().items()}
    known = [name for name, learned in parts.items() if part in learned]
    return (known or [name for name, learned in parts.items() if any(one.env == _ANY for one in learned)])[0]
