"""The attack suite against every sandbox, and each layer of bubblewrap removed to see the judges fail."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agentflow.cli import main
from agentflow.errors import UserError
from agentflow.sandbox.attacks.suite import ATTACKS
from agentflow.sandbox.base import Limits, Program, Result, Sandbox
from agentflow.sandbox.bubblewrap import BubblewrapSandbox
from agentflow.sandbox.groups import Group
from agentflow.sandbox.probe import BACKENDS, probe
from tests.integration.sandbox.ablation import NAMED, ROOM, held, tried
from tests.trusted_sandbox import real


def working(name: str) -> Sandbox:
    """Return a backend, or skip where it does not work."""
    try:
        sandbox = BACKENDS[name]()
    except UserError as error:
        pytest.skip(str(error))
    problem = asyncio.run(probed(sandbox))
    if problem:
        pytest.skip(problem)
    return BACKENDS[name]()


async def probed(sandbox: Sandbox) -> str:
    """Probe a sandbox and close it."""
    try:
        return await probe(sandbox)
    finally:
        await sandbox.close()


@pytest.mark.parametrize("name", ["process", "bubblewrap"])
def test_every_attack_is_contained(name: str) -> None:
    verdicts = tried(working(name), list(NAMED))
    found = {attack: verdict for attack, verdict in verdicts.items() if verdict.outcome != "contained"}
    assert not found


class Ablated(BubblewrapSandbox):
    """bubblewrap with one layer less.

    Args:
        words: Changes the words about namespaces and the file system.
        apart: Changes what keeps bubblewrap itself apart.
        limits: Limits that are raised out of reach.
        inside: Leaves out what the guest sets.
        is_filtered: Whether the system-call filter stands.
        has_group: Whether there is a control group.
    """

    def __init__(
        self,
        *,
        words: Callable[[list[str]], list[str]] = list,
        apart: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        limits: dict[str, Any] | None = None,
        inside: Callable[[list[str]], list[str]] = list,
        is_filtered: bool = True,
        has_group: bool = True,
    ) -> None:
        super().__init__()
        self._changed = words, apart, inside
        self._raised = limits or {}
        self._has_group = has_group
        if not is_filtered:
            self._filter = b"\x06\0\0\0\0\0\xff\x7f"  # one instruction: allow

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run with the raised limits."""
        return await super().run(program, (limits or Limits()).model_copy(update=self._raised))

    def _group(self, slot: int) -> Group | None:
        return super()._group(slot) if self._has_group else None

    def _place(self, limits: Limits) -> list[str]:
        return self._changed[0](super()._place(limits))

    def _apart(self, slot: int, files: list[int]) -> dict[str, Any]:
        return self._changed[1](super()._apart(slot, files))

    def _inside(self, program: Program, limits: Limits, *, figures: int) -> Sequence[str]:
        return self._changed[2](list(super()._inside(program, limits, figures=figures)))


def without(*gone: str) -> Callable[[list[str]], list[str]]:
    """Leave out words; `--unshare-all` is spelled out first."""
    kinds = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    hostname = ["--hostname", "sandbox"] if "--unshare-uts" in gone else []

    def change(words: list[str]) -> list[str]:
        spelled = [*kinds, *(word for word in words if word != "--unshare-all")]
        return [word for word in spelled if word not in gone and word not in hostname]

    return change


def swapped(old: Sequence[str], new: Sequence[str]) -> Callable[[list[str]], list[str]]:
    """Replace words that follow each other."""

    def change(words: list[str]) -> list[str]:
        at = next(i for i in range(len(words)) if words[i : i + len(old)] == list(old))
        return [*words[:at], *new, *words[at + len(old) :]]

    return change


def as_root(options: dict[str, Any]) -> dict[str, Any]:
    """Keep root's number."""
    return {name: value for name, value in options.items() if name not in ("user", "group", "extra_groups")}


def careless(options: dict[str, Any]) -> dict[str, Any]:
    """Pass on every inheritable descriptor."""
    held = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    extra = [number for number in held if is_inheritable(number)]
    return options | {"pass_fds": [*options["pass_fds"], *extra]}


def is_inheritable(number: int) -> bool:
    """Say whether a descriptor exists and would be passed on."""
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


def lawless(words: list[str]) -> list[str]:
    """Let the guest set no resource limits."""
    return [word.replace("    resource.setrlimit(kind, (value, value))", "    pass") for word in words]


ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root has another user to become")
BESIDE_A_SHELL = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
LAYERS: dict[str, tuple[dict[str, Any], str]] = {
    "seccomp": (
        {"is_filtered": False},
        "network/the hypervisor; "
        "kernel/a ring of requests; kernel/files without a place; kernel/calls of 32 bits; "
        "kernel/another execution domain; kernel/memory of its own child, from outside it; kernel/keys; "
        "kernel/comparison of processes; kernel/a segment of its own; processes/tracing; "
        "kernel/faults handled by itself; kernel/performance counters",
    ),
    "network namespace": (
        {"words": without("--unshare-net")},
        "network/the host's loopback; network/the host's loopback of version 6; network/the host's own address; "
        "network/datagrams to the host; network/an abstract socket of the host; "
        "network/datagrams to an abstract socket; network/a port that the host sees; network/the host's interfaces",
    ),
    "process namespace": (
        {"words": without("--unshare-pid")},
        "identity/the host's process numbers; processes/command lines of the host; processes/a daemon; "
        "processes/a daemon of a shell",
    ),
    "IPC namespace": ({"words": without("--unshare-ipc")}, "identity/the host's messages"),
    "host name": ({"words": without("--unshare-uts")}, "identity/the host's name"),
    "other user": (
        {"apart": as_root},
        "identity/root of the host; identity/the host's user; files/settings of the kernel, for writing",
    ),
    "clean environment": (
        {"apart": lambda options: options | {"env": dict(os.environ)}},
        "processes/environments of the host; processes/the environment of its parent",
    ),
    "other groups": ({"apart": lambda options: options | {"extra_groups": [27]}}, "identity/groups of the host"),
    "process namespace and other user": (
        {"words": without("--unshare-pid"), "apart": as_root},
        "processes/a signal to the host; processes/a handle on the host's process",
    ),
    "session of its own": (
        {"words": without("--new-session"), "apart": lambda options: options | {"start_new_session": False}},
        "processes/the host's process group",
    ),
    "nobody beside the program but process 1": (
        {"inside": lambda words: [*BESIDE_A_SHELL, *words]},
        "protocol/process 1 killed; protocol/its parent stopped",
    ),
    "clean environment inside": (
        {"words": without("--clearenv"), "apart": lambda options: options | {"env": dict(os.environ)}},
        "processes/its own environment",
    ),
    "closed descriptors": ({"apart": careless}, "files/inherited descriptors"),
    "nothing beside the work space": ({"words": lambda words: [*words, "--bind", "/var/tmp", "/var/tmp"]},
                       "persistence/temporary files that stay; files/a place beside the work space"),
    "files of its own": (
        {"words": swapped(["--symlink", "work", "/tmp"], ["--bind", "/tmp", "/tmp"])},
        "files/a secret of the host; files/the host's root through process 1; "
        "files/the host's root through other processes; files/dots above the root; files/a symbolic link of its own; "
        "files/a shell that globs; network/a socket in the host's files",
    ),
    "read-only devices": (
        {"words": swapped(["--remount-ro", "/dev"], [])}, "files/the folder of devices, for writing",
    ),
    "private shared memory": (
        {"words": lambda words: [*words, "--bind", "/dev/shm", "/dev/shm"]},
        "files/shared memory of the host; persistence/shared memory",
    ),
    "size of the work space": (
        {"limits": {"disk_mb": 256, "memory_mb": 1024, **ROOM}},
        "resources/one large file; resources/many large files; resources/storage by reservation; resources/inodes",
    ),
    "size of shared memory": (
        {
            "words": swapped(["--size", str(1 << 20), "--tmpfs", "/dev/shm"], ["--tmpfs", "/dev/shm"]),
            "limits": {"disk_mb": 256, "memory_mb": 1024, **ROOM},
        },
        "resources/storage in shared memory",
    ),
    "memory limit": (
        {"limits": {"memory_mb": 2048, **ROOM}},
        "resources/memory; resources/memory of several processes; resources/memory of a decompression bomb; "
        "resources/memory in pages that no process maps",
    ),
    "memory limit and seccomp": (
        {"is_filtered": False, "limits": {"memory_mb": 2048, **ROOM}}, "resources/memory in detached segments",
    ),
    "control group": ({"has_group": False, "limits": ROOM}, "resources/memory in pages that no process maps"),
    "CPU limit": (
        {"limits": {"cpu_s": 3.0, "wall_s": 10.0}},
        "resources/spin; resources/spin in several processes; resources/spin out of reach of signals; "
        "resources/spin within one instruction; resources/spin in children that nobody waits for",
    ),
    "wall limit": (
        {"limits": {"wall_s": 4.5}}, "resources/sleep; resources/stop; protocol/streams closed early",
    ),
    "process limit": (
        {"limits": {"max_processes": 1000, "memory_mb": 2048, **ROOM}},
        "resources/processes; resources/threads; resources/processes of a shell; "
        "resources/processes that orphan each other",
    ),
    "output limit": ({"limits": {"output_kb": 1 << 20}}, "resources/output; resources/output of errors"),
    "resource limits": (
        {"inside": lawless}, "resources/descriptors; resources/raised limits; resources/a sparse file",
    ),
}  # fmt: skip


@real
@ROOT
@pytest.mark.parametrize("layer", LAYERS)
def test_without_its_layer_an_attack_escapes(layer: str) -> None:
    changes, names = LAYERS[layer]
    assert not held(lambda: Ablated(**changes), names)


def test_names_are_unique_and_there_are_enough() -> None:
    assert len(NAMED) == len(ATTACKS) >= 70


@real
def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "attack", "--backend", "bubblewrap", "--only", "network/the host*"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["all", "4", "4", "0"]
    assert main(["sandbox", "attack", "--only", "nothing"]) == 2
