"""Attacks that several layers contain, on hosts that have none; and every attack seen to escape from something.

What runs here as root and uncontained opens and looks, and does nothing with what it holds. An attack that sends
signals to everybody, as `protocol/process 1 killed` does, must never come here.
"""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agentflow.sandbox.base import Program
from tests.integration.sandbox import test_ablation, test_docker_ablation
from tests.integration.sandbox.ablation import NAMED, held, tried
from tests.integration.sandbox.careless import (
    AsksTheProgram,
    BelievesWords,
    ExpectsText,
    OneInterpreter,
    Plain,
    RemovesByPath,
)

_ADMINISTRATION, _RESOURCES = 21, 24  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE

HOSTS: dict[type[Plain], str] = {
    Plain: "files/a hard link of its own; files/inherited descriptors of others; files/a handle instead of a path; "
    "files/block devices; files/memory and log of the kernel; files/switches of the kernel, for writing; "
    "files/control groups, for writing; files/the user's home; processes/a daemon that holds the streams; "
    "processes/a stopped tree; processes/children that never stop being born; processes/memory of the host's process; "
    "processes/descriptors of the host's process; kernel/a new root; kernel/the namespaces of another process; "
    "kernel/a program of BPF; kernel/a file system in the making; kernel/a detached tree; kernel/its log; "
    "identity/before everybody else; identity/the host's mounts; persistence/work space; persistence/temporary files; "
    "persistence/home; persistence/a module on the path; persistence/a program for a shell; "
    "persistence/a segment of shared memory; persistence/a queue of messages; persistence/keys; "
    "persistence/a server that stays; protocol/files above the work space; protocol/files at the root; "
    "protocol/input that is not read; protocol/input that is held open",
    BelievesWords: "protocol/reports on its own streams; protocol/reports from a child",
    AsksTheProgram: "protocol/reports on every channel; protocol/a child that succeeds in its stead; "
    "protocol/a signal; protocol/channels closed; protocol/channels filled; protocol/channels read empty",
    ExpectsText: "protocol/bytes that are no text",
    RemovesByPath: "protocol/a work space that cannot be removed",
    OneInterpreter: "processes/zombies; persistence/builtins; persistence/modules and environment; "
    "persistence/the name of the machine; persistence/a module beside the standard library",
}


def has_ciphers() -> bool:
    """Say whether the kernel offers its ciphers by sockets."""
    try:
        socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()
    except OSError:
        return False
    return True


def has_capability(number: int) -> bool:
    """Say whether this process has a right of root; a container or a machine may have been started without it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return bool(int(next(line.split()[1] for line in lines if line.startswith("CapEff")), 16) >> number & 1)


ROOT = pytest.mark.skipif(
    not has_capability(_ADMINISTRATION),
    reason="WHAT SEVERAL LAYERS CONTAIN IS NOT TRIED WITHOUT: it takes all of root",
)
ONLY_ON_SOME_MACHINES: dict[str, Callable[[], bool]] = {
    "network/the kernel's ciphers": has_ciphers,
    "identity/never killed for want of memory": lambda: has_capability(_RESOURCES),
}
"""What even a host without layers holds off where the machine has not what is attacked: that is all that may."""


@ROOT
@pytest.mark.parametrize("host", HOSTS)
def test_host_without_layers_contains_nobody(host: type[Plain]) -> None:
    assert not held(host, HOSTS[host])


@ROOT
@pytest.mark.parametrize("host", HOSTS)
def test_host_without_layers_still_runs_a_program(host: type[Plain]) -> None:
    async def play() -> tuple[str, str]:
        sandbox = host()
        result = await sandbox.run(Program("print('said')"))
        await sandbox.close()
        return result.status, result.stdout.text

    assert asyncio.run(play()) == ("ok", "said\n")


@ROOT
def test_attack_on_what_a_machine_lacks_escapes_wherever_it_has_it() -> None:
    verdicts = tried(Plain(), list(ONLY_ON_SOME_MACHINES))
    escaped = {name: verdict.outcome == "escaped" for name, verdict in verdicts.items()}
    assert escaped == {name: is_there() for name, is_there in ONLY_ON_SOME_MACHINES.items()}


def test_every_attack_is_seen_to_escape_from_something() -> None:
    of_process = (layer.names for layer in test_ablation.LAYERS.values())
    texts = [*HOSTS.values(), *of_process, *(names for _, names in test_docker_ablation.LAYERS.values())]
    seen = {name for names in texts for name in names.split("; ")}
    assert seen | ONLY_ON_SOME_MACHINES.keys() == NAMED.keys()
    assert not seen & ONLY_ON_SOME_MACHINES.keys()
