"""Configurations of earlier versions, read as those of today: runs stay readable and go on.

Only files go through here. What a person types is refused under its old name, with the new one.
"""

from collections.abc import Mapping
from typing import Any

from agentflow.runs.flat_algorithms import with_slots

_SERVER_OPTIONS = {
    "servers": "count",
    "server_args": "args",
    **{name: name for name in "urls python gpus cache_gb max_sequences weights_host startup_s turn_s hang_s".split()},
    "restarts": "restarts",
}


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with every option under the name that it has today."""
    return _slots_of_options(_roles_of_speakers(_servers_apart(dict(config))))


def _slots_of_options(config: dict[str, Any]) -> dict[str, Any]:
    """Fill the slots of an algorithm from its options, which lay flat in its section."""
    flat = config.get("algorithm")
    # Only a run wrote every option; a file with some of them leaves open of which recipe.
    if not isinstance(flat, Mapping) or not {"credit", "aggregation", "clip_low"} <= set(flat):
        return config
    return {**config, "algorithm": with_slots(flat)}


def _servers_apart(config: dict[str, Any]) -> dict[str, Any]:
    """Move the options of servers, which lay flat among those of the policy, into their own section."""
    policy = config.get("policy")
    if not isinstance(policy, Mapping) or isinstance(policy.get("servers"), Mapping):
        return config
    flat = {new: policy[old] for old, new in _SERVER_OPTIONS.items() if old in policy}
    kept = {name: value for name, value in policy.items() if name not in _SERVER_OPTIONS}
    return {**config, "policy": {**kept, **({"servers": flat} if flat else {})}}


def _roles_of_speakers(config: dict[str, Any]) -> dict[str, Any]:
    """Say of each role who speaks for it; the expert was a kind of policy."""
    roles, policy = config.get("roles", {}), config.get("policy", {})
    if not isinstance(roles, Mapping) or not isinstance(policy, Mapping):
        return config
    named = {name: _speaks(role) for name, role in roles.items()}
    if policy.get("backend") == "scripted":
        named = {"planner": {"speaks": "expert", "trained": True}, **named}
        policy = {name: value for name, value in policy.items() if name != "backend"}
    return {**config, **({"roles": named} if named else {}), **({"policy": policy} if "policy" in config else {})}


def _speaks(role: Any) -> Any:
    if not isinstance(role, Mapping) or "backend" not in role:
        return role
    return {"speaks": role["backend"], **{name: value for name, value in role.items() if name != "backend"}}
