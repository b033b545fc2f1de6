"""Each layer of the Docker backend taken away in turn: the attacks named for it must then be judged as escapes.

The namespace of processes stays. A container's first process ends everybody whom it can see, and as root in the
host's namespace that is the host.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from agentflow.sandbox.base import Limits, Program, Result
from agentflow.sandbox.docker.backend import DockerSandbox
from tests.integration.sandbox.ablation import ROOM, held

pytestmark = pytest.mark.usefixtures("engine")
Options = dict[str, Any]


class Loosened:
    """Docker's low-level client, which leaves something out of every container that it makes.

    Args:
        api: The client.
        change: Changes what a container is made of.
    """

    def __init__(self, api: Any, change: Callable[[Options], Options]) -> None:
        self._api, self._change = api, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def create_container(self, image: str, command: list[str], **options: Any) -> Any:
        """Make a container."""
        changed = self._change({"command": command, **options})
        assert changed["host_config"].get("PidMode") != "host", "its first process would end every process of the host"
        return self._api.create_container(image, **changed)


class Ablated(DockerSandbox):
    """Docker with one layer less.

    Args:
        change: Changes what a container is made of.
        limits: Limits that are raised out of reach.
    """

    def __init__(self, change: Callable[[Options], Options] = dict, *, limits: Mapping[str, Any] | None = None) -> None:
        super().__init__(concurrency=2, warm=0)
        self._pool._api = Loosened(self._pool._api, change)
        self._raised = limits or {}

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run with the raised limits."""
        return await super().run(program, (limits or Limits()).model_copy(update=dict(self._raised)))


def host(**changes: Any) -> Callable[[Options], Options]:
    """Change settings of the host's side."""
    return lambda options: options | {"host_config": options["host_config"] | changes}


def secured(*, without: str) -> Callable[[Options], Options]:
    """Leave out a word about security."""

    def change(options: Options) -> Options:
        kept = [word for word in options["host_config"]["SecurityOpt"] if not word.startswith(without)]
        return host(SecurityOpt=[*kept, *(["seccomp=unconfined"] if without == "seccomp" else [])])(options)

    return change


def as_root(options: Options, **changes: Any) -> Options:
    """Let the program be root, whose own the work space is."""
    user = options["user"].partition(":")[0]
    places = options["host_config"]["Tmpfs"].items()
    owned = {place: words.replace(f"id={user}", "id=0") for place, words in places}
    return host(Tmpfs=owned, **changes)(options | {"user": "0:0"})


def in_the_hosts_folder(options: Options) -> Options:
    """Give no work space, to which /tmp leads within, but the host's own /tmp."""
    places = {place: words for place, words in options["host_config"]["Tmpfs"].items() if place != "/work"}
    return host(Tmpfs=places, Binds=["/tmp:/work"])(options)


def lawless(options: Options) -> Options:
    """Let neither the engine nor the guest set resource limits."""
    command = [word.replace("    resource.setrlimit(kind, (value, value))", "    pass") for word in options["command"]]
    return host(Ulimits=[])(options | {"command": command})


LAYERS: dict[str, tuple[dict[str, Any], str]] = {
    "seccomp": (
        {"change": secured(without="seccomp")},
        "processes/tracing; network/the hypervisor; kernel/a new user namespace; kernel/a new mnt namespace; "
        "kernel/a new net namespace; kernel/a new ipc namespace; kernel/a new uts namespace; "
        "kernel/a new user namespace by clone; kernel/a mount in a new user namespace; kernel/performance counters; "
        "kernel/faults handled by itself; kernel/a ring of requests; kernel/files without a place; "
        "kernel/secret memory; kernel/another execution domain; kernel/calls of 32 bits; kernel/keys; "
        "kernel/memory of its own child, from outside it; kernel/comparison of processes; "
        "kernel/a segment of its own; identity/without a filter",
    ),
    "no new privileges": ({"change": secured(without="no-new-privileges")}, "identity/set-user programs"),
    "other user": (
        {"change": as_root},
        "identity/root of the host; identity/the host's user; identity/groups of the host; "
        "files/the folder of devices, for writing",
    ),
    "other user and capabilities": (
        {"change": lambda options: as_root(options, CapDrop=[])},
        "network/raw sockets; identity/capabilities; identity/a map of users",
    ),
    # Sockets of packets are no family that the filter knows, and need a capability: two layers hold them.
    "other user, capabilities and seccomp": (
        {"change": lambda options: as_root(secured(without="seccomp")(options), CapDrop=[])},
        "network/packets",
    ),
    "other user and read-only root": (
        {"change": lambda options: as_root(options, ReadonlyRootfs=False)},
        "files/the system's programs, for writing; files/the running interpreter, for writing; "
        "files/the root folder, for writing",
    ),
    "other user and read-only settings": (
        {"change": lambda options: as_root(options, MaskedPaths=[], ReadonlyPaths=[])},
        "files/settings of the kernel, for writing; files/switches of the kernel, for writing",
    ),
    "no network": (
        {"change": lambda options: host(NetworkMode="host")(options | {"network_disabled": False})},
        "network/the host's loopback; network/the host's own address; network/datagrams to the host; "
        "network/an abstract socket of the host; network/datagrams to an abstract socket; "
        "network/a port that the host sees; network/the host's interfaces",
    ),
    "messages and memory of its own": (
        {"change": host(IpcMode="host")}, "identity/the host's messages; files/shared memory of the host",
    ),
    "host name": (
        {"change": lambda options: host(UTSMode="host")(options | {"hostname": None})}, "identity/the host's name",
    ),
    "files of its own": (
        {"change": in_the_hosts_folder},
        "files/a secret of the host; files/the host's root through other processes; files/dots above the root; "
        "files/a symbolic link of its own; files/a shell that globs; network/a socket in the host's files",
    ),
    "clean environment": (
        {"change": lambda options: options | {"environment": options["environment"] | dict(os.environ)}},
        "processes/its own environment",
    ),
    "resource limits": (
        {"change": lawless}, "resources/descriptors; resources/raised limits; resources/a sparse file",
    ),
    "size of the work space": (
        {"limits": {"disk_mb": 256, "memory_mb": 1024, **ROOM}},
        "resources/one large file; resources/many large files; resources/storage by reservation; resources/inodes",
    ),
    "size of shared memory": (
        {"change": host(ShmSize=256 << 20), "limits": {"disk_mb": 256, "memory_mb": 1024, **ROOM}},
        "resources/storage in shared memory",
    ),
    "memory limit": (
        {"change": host(Memory=2 << 30, MemorySwap=2 << 30), "limits": ROOM},
        "resources/memory; resources/memory of several processes",
    ),
    "process limit": (
        {"limits": {"max_processes": 1000, "memory_mb": 2048, **ROOM}},
        "resources/processes; resources/threads; resources/processes of a shell",
    ),
    "CPU limit": ({"limits": {"cpu_s": 2.0, "wall_s": 10.0}}, "resources/spin; resources/spin out of reach of signals"),
    "wall limit": ({"limits": {"wall_s": 4.5}}, "resources/sleep"),
    "output limit": ({"limits": {"output_kb": 1 << 20}}, "resources/output; resources/output of errors"),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_without_its_layer_an_attack_escapes(layer: str) -> None:
    changes, names = LAYERS[layer]
    assert not held(lambda: Ablated(**changes), names)
