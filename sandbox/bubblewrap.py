"""The bubblewrap backend: each program in namespaces of its own, on a read-only system, under a system-call filter.

The command starts as a user that owns nothing: bubblewrap that is started by root leaves /proc/sys writable. Limits
are judged from outside, over all processes of an execution together: CPU seconds, memory, number of files, output and
wall time, the first two by a control group where this process may make some; number of processes, open files and file
sizes are set inside, where only the program's own count.
"""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from agentflow.sandbox.base import ENVIRONMENT, Limits, Program, Result, SandboxUnavailable, Session, refusal
from agentflow.sandbox.execution import GUEST, Execution, Verdict, guest_words, in_thread
from agentflow.sandbox.figures import FigureFile, with_figures
from agentflow.sandbox.groups import Group, enforced
from agentflow.sandbox.meter import GroupMeter
from agentflow.sandbox.seccomp import bpf_filter
from agentflow.sandbox.streams import memory_file
from agentflow.sandbox.system import shown_at

_FIRST_UID = 20_000  # one user a slot, so that one execution's processes are never another's
_INSIDE_UID = 65_534
_SHARED_MEMORY_BYTES = 1 << 20
_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib64")
_SYSTEM_PYTHON = "/usr/bin/python3"
INSTALL = "Install it: apt-get install bubblewrap."


class BubblewrapSandbox:
    """Run programs under bubblewrap.

    Args:
        concurrency: Programs at once; None for one a core.
        python: The interpreter inside; None for this one where every user can read it, otherwise the system's.

    Raises:
        SandboxUnavailable: bubblewrap is not installed, or no interpreter can be read by every user.
    """

    name = "bubblewrap"

    def __init__(self, concurrency: int | None = None, *, python: str | None = None) -> None:
        found = shutil.which("bwrap")
        if found is None:
            raise SandboxUnavailable("There is no bwrap on the PATH.", INSTALL)
        self._command = found
        self._filter = bpf_filter()
        self.python = python or _interpreter()
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(concurrency or os.cpu_count() or 1):
            self._slots.put_nowait(slot)
        self._groups: dict[int, Group | None] = {}

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program in a fresh place; see `Sandbox`."""
        used = limits or Limits()
        problem = refusal(program, used)
        if problem:
            return Result("refused", detail=problem, backend=self.name)
        slot = await self._slots.get()
        try:
            return await in_thread(lambda stop: self._run(program, used, slot=slot, stop=stop))
        finally:
            self._slots.put_nowait(slot)

    async def session(self, limits: Limits | None = None) -> Session:
        """Refuse: every program of this backend starts afresh.

        Raises:
            SandboxUnavailable: Always.
        """
        raise SandboxUnavailable("The bubblewrap sandbox keeps no interpreter between programs.", "Use `run`.")

    async def close(self) -> None:
        """Remove the control groups; nothing else is kept."""
        groups, self._groups = self._groups, {}
        for group in groups.values():
            if group is not None:
                await asyncio.to_thread(group.close)

    def _run(self, program: Program, limits: Limits, *, slot: int, stop: threading.Event) -> Result:
        with ExitStack() as files:
            try:
                figures = files.enter_context(FigureFile())
                group = self._group(slot)
                process = self._start(program, limits, slot=slot, files=files, figures=figures.descriptor)
                meter = self._join(group, process.popen.pid, limits=limits)
                if meter is not None:
                    files.callback(meter.close)
                process.begin()
            except OSError as error:
                return Result("infra_error", detail=f"bwrap does not start: {error}", backend=self.name)
            status_fd = files.enter_context(process.status)
            execution = Execution(process.popen, status_fd.fileno(), limits=limits, stop=stop, meter=meter)
            verdict = execution.watch(program.stdin)
            return with_figures(_result(verdict, enforced(group)), figures.take())

    def _start(self, program: Program, limits: Limits, *, slot: int, files: ExitStack, figures: int) -> "_Started":
        shown = {f"/work/{name}": content for name, content in program.files.items()}
        given = {path: files.enter_context(memory_file(content)) for path, content in shown.items()}
        source = files.enter_context(memory_file(program.code.encode("utf-8", "replace")))
        seccomp = files.enter_context(memory_file(self._filter))
        reading, writing = os.pipe()
        status = os.fdopen(reading, "rb")
        files.callback(os.close, writing)
        words = [*self._place(limits), "--ro-bind-data", str(source), "/program", "--seccomp", str(seccomp)]
        for path, content_fd in given.items():
            words += ["--file", str(content_fd), path]
        words += ["--remount-ro", "/", "--json-status-fd", str(writing)]
        # bubblewrap waits for the end of this pipe, so that it starts nothing before it is in its control group.
        arguments, telling = os.pipe()
        files.callback(os.close, arguments)
        words_file = files.enter_context(os.fdopen(telling, "wb"))
        popen: Any = subprocess.Popen(
            [self._command, "--args", str(arguments), "--", *self._inside(program, limits, figures=figures)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **self._apart(slot, [arguments, source, seccomp, writing, figures, *given.values()]),
        )
        return _Started(popen, status, words_file, b"\0".join(word.encode() for word in words))

    def _group(self, slot: int) -> Group | None:
        """Return the control group of a slot, which only one program at a time has; None where there are none."""
        if slot not in self._groups:
            self._groups[slot] = Group.create()
        return self._groups[slot]

    def _join(self, group: Group | None, pid: int, *, limits: Limits) -> GroupMeter | None:
        """Put a process into a control group; what measures it."""
        if group is None:
            return None
        # A second line: what counts is the limit inside, which leaves out bubblewrap itself and whoever is still dying.
        group.limit(limits.model_copy(update={"max_processes": limits.max_processes + 64}))
        files = group.open_files()
        for name in [name for name in files if name.startswith("join")]:
            with os.fdopen(files.pop(name), "wb", buffering=0) as join:
                join.write(str(pid).encode())
        return GroupMeter(files)

    def _place(self, limits: Limits) -> list[str]:
        """Return bubblewrap's words for namespaces and the file system."""
        return _place(limits, self.python)

    def _inside(self, program: Program, limits: Limits, *, figures: int) -> Sequence[str]:
        """Return the command inside."""
        return _inside(program, limits, python=self.python, figures=figures)

    def _apart(self, slot: int, files: list[int]) -> dict[str, Any]:
        """Return what keeps bubblewrap itself apart from this process: descriptors, environment, session, user."""
        user = _FIRST_UID + slot
        identity: dict[str, Any] = {} if os.getuid() else {"user": user, "group": user, "extra_groups": []}
        environment = {"PYTHONHASHSEED": "0"}  # the caller's own never gets near the program
        return {"pass_fds": files, "env": environment, "cwd": "/", "start_new_session": True, **identity}


@dataclass(frozen=True, slots=True)
class _Started:
    """A command that waits for its words.

    Attributes:
        popen: The process.
        status: Where bubblewrap tells what becomes of the program.
        words_file: Where it reads its words.
        words: They.
    """

    popen: "subprocess.Popen[bytes]"
    status: BinaryIO
    words_file: BinaryIO
    words: bytes

    def begin(self) -> None:
        """Let it start the program."""
        with suppress(BrokenPipeError):  # it has ended, which is seen soon enough
            self.words_file.write(self.words)
            self.words_file.close()


def _place(limits: Limits, python: str) -> list[str]:
    """Return bubblewrap's words for namespaces and the file system."""
    words = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    words += ["--uid", str(_INSIDE_UID), "--gid", str(_INSIDE_UID), "--hostname", "sandbox", "--cap-drop", "ALL"]
    words += ["--clearenv"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--ro-bind", "/usr", "/usr"]
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            words += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            words += ["--ro-bind", folder, folder]
    for folder in _folders(python):
        words += ["--ro-bind", folder, shown_at(folder)]
        for hidden in Path(folder).glob("lib/python3*/site-packages/agentflow"):  # its environments know the answers
            words += ["--size", "4096", "--tmpfs", shown_at(str(hidden)), "--remount-ro", shown_at(str(hidden))]
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += ["--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    words += ["--size", str(limits.disk_mb << 20), "--tmpfs", "/work", "--chdir", "/work"]
    return [*words, "--symlink", "work", "/tmp"]  # noqa: S108


def _interpreter() -> str:
    """Choose an interpreter that the user of a slot, who owns nothing, can read."""
    if all(map(is_public, _folders(sys.executable))):
        return sys.executable
    if os.access(_SYSTEM_PYTHON, os.X_OK):
        return _SYSTEM_PYTHON
    raise SandboxUnavailable(
        f"Other users cannot read {sys.base_prefix}, and there is no {_SYSTEM_PYTHON}.",
        "Install it (apt-get install python3), or a Python that every user can read.",
    )


def _folders(python: str) -> list[str]:
    """Return the folders of an interpreter that are not part of the system's own."""
    own = (sys.base_prefix, sys.prefix) if python == sys.executable else (str(Path(python).resolve().parent),)
    return [folder for folder in dict.fromkeys(own) if not PurePosixPath(folder).is_relative_to("/usr")]


def is_public(folder: str) -> bool:
    """Say whether every user can reach and list a folder; an ordinary user keeps its own rights inside."""
    if os.getuid():
        return True
    steps = [Path(folder), *Path(folder).parents]
    return all(step.stat().st_mode & stat.S_IXOTH for step in steps) and bool(steps[0].stat().st_mode & stat.S_IROTH)


def _inside(program: Program, limits: Limits, *, python: str, figures: int) -> Sequence[str]:
    """Return the command inside: the guest, which sets the last limits and becomes the program."""
    return [shown_at(python), "-s", "-P", "-c", GUEST, "/program", *guest_words(program, limits), str(figures)]


def _result(verdict: Verdict, layers: tuple[str, ...]) -> Result:
    ended = [json.loads(line) for line in verdict.told.splitlines() if line.startswith(b"{")]
    code = next((told["exit-code"] for told in ended if "exit-code" in told), None)
    return verdict.result(code, backend=BubblewrapSandbox.name, enforced=layers)
