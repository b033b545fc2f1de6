"""How the host sees a process: everything in its /proc that a judge may need."""

import contextlib
import ctypes
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from agentflow.sandbox.attacks.base import OpenFile, Sighting
from agentflow.sandbox.process.system import WORK

_KINDS = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
_PIDFD_GETFD = 438  # the same number on every architecture
_GROUP, _SESSION, _NICE, _POLICY = 2, 3, 16, 38  # fields of /proc/PID/stat, counted from the state
_PORT = re.compile(r"port-(\d+)")
_MAX_FILES = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def look(pid: int, heard: bytes | None = None) -> Sighting:
    """Look at a process.

    Args:
        pid: Its number on the host.
        heard: What it answered where it listens.

    Raises:
        OSError: It has ended.
    """
    at = Path(f"/proc/{pid}")
    stat = (at / "stat").read_text().rpartition(")")[2].split()
    status = (line.split(":\t", 1) for line in (at / "status").read_text().splitlines())
    return Sighting(
        status={parts[0]: parts[1].strip() for parts in status if len(parts) == 2},
        limits={line[:26].strip(): line[26:46].strip() for line in (at / "limits").read_text().splitlines()[1:]},
        namespaces={kind: os.readlink(at / "ns" / kind) for kind in _KINDS},
        mounts=(at / "mountinfo").read_text(errors="replace"),
        files=tuple(_files(pid)),
        root=os.readlink(at / "root"),
        personality=_personality(at),
        group=int(stat[_GROUP]),
        session=int(stat[_SESSION]),
        oom_score=int((at / "oom_score_adj").read_text()),
        niceness=int(stat[_NICE]),
        policy=int(stat[_POLICY]),
        inodes=_inodes(at / f"root{WORK}"),
        heard=heard,
    )


def call_back(address: str | int) -> bytes:
    """Connect to where a program says that it listens, and read."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address)), timeout=0.5) as stream:
        return stream.recv(256)
    return b""


def _files(pid: int) -> Iterator[OpenFile]:
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd")[:_MAX_FILES]:
            with contextlib.suppress(OSError):
                yield _file(pid, number)


def _file(pid: int, number: str) -> OpenFile:
    at = f"/proc/{pid}/fd/{number}"
    link = os.readlink(at)
    flags = int(re.findall(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{number}").read_text())[0], 8)
    found = os.stat(at)
    return OpenFile(
        link=link,
        writable=flags & os.O_ACCMODE != os.O_RDONLY,
        mode=found.st_mode,
        number=(found.st_dev, found.st_ino),
        size_mb=found.st_size / 2**20,
        stored_mb=found.st_blocks * 512 / 2**20,
        family=_family(pid, int(number)) if link.startswith("socket:") else 0,
    )


def _family(pid: int, number: int) -> int | None:
    process = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), process, number, 0)
    finally:
        os.close(process)
    if copy < 0:
        return None
    with socket.socket(fileno=copy) as stream:
        return int(stream.family)


def _personality(at: Path) -> int | None:
    try:
        return int((at / "personality").read_text(), 16)
    except OSError:
        return None


def _inodes(folder: Path) -> int:
    """Count the files of a work space that is a file system of its own."""
    try:
        if folder.stat().st_dev in (os.stat("/").st_dev, folder.parent.stat().st_dev):
            return sum(1 for _ in os.scandir(folder))
        place = os.statvfs(folder)
    except OSError:
        return 0
    return place.f_files - place.f_ffree
