"""The process backend: a warm interpreter forks for each execution, into namespaces of its own.

Each slot has zygotes: interpreters that have left the host's files behind and imported what programs need. For an
execution one forks process 1 of fresh namespaces (user, process, mount, network, IPC, host name), which mounts a
private work space, puts the system-call filter over itself and forks the worker that becomes the program. Python is
not started again, so that isolation costs less than a plain `python`.

Control groups of either version bound memory and processes where this process may make some; elsewhere the zygote
polls the tree, and resource limits bound each process. `Result.enforced` says which.
"""

import asyncio
import importlib.util
import marshal
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import cycle
from typing import Any

from agentflow.sandbox.base import Limits, Program, Result, SandboxFailure, Session, refusal
from agentflow.sandbox.figures import FigureFile
from agentflow.sandbox.limits.groups import Group, enforced
from agentflow.sandbox.process.launcher import Event, Launcher, LauncherBroken, spec_of, usage_of
from agentflow.sandbox.process.packages import shown_paths
from agentflow.sandbox.process.sessions import open_session
from agentflow.sandbox.process.worker import READY, REFUSED
from agentflow.sandbox.streams import Kept, Pipe, memory_file
from agentflow.sandbox.verdict import CANCELLED, Ending, result_of
from agentflow.sandbox.waiting import to_the_end

_FIRST_UID = 21_000  # one user a slot, so that one execution's processes are never another's
_LOST_S = 10.0
"""How much longer than its wall time an execution may take to be reported dead, before its zygote counts as hung."""
_COMMON = (
    "bisect collections copy dataclasses datetime decimal enum fractions functools heapq io itertools json math "
    "operator random re statistics string textwrap threading time typing"
).split()
_HEAVY = ("numpy", "numpy.random", "sympy")
_IMPORTS_HEAVY = re.compile(r"\b(?:numpy|sympy)\b")


class ProcessSandbox:
    """Run programs in forks of a warm interpreter.

    It belongs to the event loop that uses it first.

    Args:
        concurrency: Programs at once; None for one a core.
        packages: Installed distributions that programs may import, beside `packages.PACKAGES`.

    Raises:
        ConfigError: One of these is not installed.
    """

    name = "process"

    def __init__(self, concurrency: int | None = None, *, packages: Sequence[str] = ()) -> None:
        shown = shown_paths(packages)
        self._slots = [_Slot(_FIRST_UID + number, shown) for number in range(concurrency or os.cpu_count() or 1)]
        self._turns = cycle(self._slots)
        self._free: asyncio.Queue[_Slot] = asyncio.Queue()
        for slot in self._slots:
            self._free.put_nowait(slot)

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program in a fresh place; see `Sandbox`."""
        used = limits or Limits()
        problem = refusal(program, used)
        if problem:
            return Result("refused", detail=problem, backend=self.name)
        async with self._turn() as slot:
            execution = _Execution(slot, used, is_heavy=_IMPORTS_HEAVY.search(program.code) is not None)
            # A caller that no longer waits must not leave the program behind, nor take its slot along.
            return await to_the_end(execution.run(program), give_up=lambda: execution.end(CANCELLED))

    async def session(self, limits: Limits | None = None) -> Session:
        """Start an interpreter that keeps its state; see `Sandbox`.

        Memory, processes and work space are bounded once, for all of its cells and branches together; CPU and wall
        time for each cell.

        Raises:
            SandboxFailure: It does not start.
        """
        try:
            launcher = next(self._turns).launcher(is_heavy=True)
        except LauncherBroken as error:
            raise SandboxFailure(f"a session of the {self.name} sandbox did not start: {error}") from None
        return await open_session(launcher, limits or Limits(), turn=self._turn, backend=self.name)

    async def close(self) -> None:
        """End the zygotes, and with them everything they started; no other is started."""
        await asyncio.gather(*(slot.close() for slot in self._slots))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator["_Slot"]:
        slot = await self._free.get()
        try:
            yield slot
        finally:
            self._free.put_nowait(slot)


class _Slot:
    """A place for one execution at a time: a user, a control group, and zygotes by what they have imported."""

    def __init__(self, user: int, packages: Sequence[str]) -> None:
        self._user = None if os.getuid() else user
        self._packages = packages
        self._launchers: dict[bool, Launcher] = {}
        self._group: Group | None = None
        self._files: dict[str, int] | None = None
        self._limits: Limits | None = None
        self._is_closed = False

    def launcher(self, *, is_heavy: bool) -> Launcher:
        """Return the zygote's launcher; nothing is started before its first execution.

        Raises:
            LauncherBroken: The slot is closed.
        """
        if self._is_closed:
            raise LauncherBroken("the sandbox was closed: open another")
        if is_heavy not in self._launchers:
            preload = (*_COMMON, *_installed()) if is_heavy else _COMMON
            self._launchers[is_heavy] = Launcher(self._user, preload, self._packages)
        return self._launchers[is_heavy]

    def group_files(self, limits: Limits) -> Mapping[str, int]:
        """Set the limits of the slot's control group and return its open files; none where there is no group."""
        if self._files is None:
            self._group = self._group or Group.create()
            self._files = self._group.open_files() if self._group is not None else {}
        if self._group is not None:
            if limits != self._limits:
                self._group.limit(limits)
                self._limits = limits
            self._group.forget_peak(self._files)
        return self._files

    @property
    def enforced(self) -> tuple[str, ...]:
        """What holds here."""
        return enforced(self._group)

    async def close(self) -> None:
        """End the zygotes and remove the group; nothing is started here any more."""
        self._is_closed = True
        for launcher in self._launchers.values():
            launcher.close()
        for descriptor in (self._files or {}).values():
            os.close(descriptor)
        group, self._group, self._files, self._limits = self._group, None, None, None
        if group is not None:
            await asyncio.to_thread(group.close)  # it waits for the last process


class _Execution:
    """One program under way."""

    def __init__(self, slot: _Slot, limits: Limits, *, is_heavy: bool) -> None:
        self._slot = slot
        self._limits = limits
        self._is_heavy = is_heavy
        self._launcher: Launcher  # from its start on
        self._number = -1
        self._died: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._ended_by = ""

    def end(self, reason: str) -> None:
        """Kill it, if it still runs."""
        self._ended_by = self._ended_by or reason
        if self._number >= 0 and not self._died.done():
            self._launcher.ask(self._number, "end", reason=reason, pid=None)

    async def run(self, program: Program) -> Result:
        """Run it to its end."""
        kept = [Kept(self._limits.output_kb << 10) for _ in range(2)]
        plots = b""
        try:
            with ExitStack() as opened:
                streams = [opened.enter_context(Pipe(each, lambda: self.end("output_limit"))) for each in kept]
                figures = opened.enter_context(FigureFile())
                await self._start(program, *streams, figures=figures)
                await asyncio.wait([self._died], timeout=self._limits.wall_s + _LOST_S)
                if self._died.done():
                    event, plots = self._died.result(), figures.take()
                else:
                    event = {"broken": "the zygote does not answer"}
            if not self._died.done():
                self._launcher.close()
        except (LauncherBroken, OSError) as error:  # nothing was started; others of the zygote go on
            event = {"broken": str(error)}
        stdout, stderr = (each.output() for each in kept)
        ending = replace(_ending(event), stdout=stdout, stderr=stderr)
        backend, enforced = ProcessSandbox.name, self._slot.enforced
        return result_of(ending, self._limits, backend=backend, enforced=enforced, figures=plots)

    async def _start(self, program: Program, stdout: Pipe, stderr: Pipe, *, figures: FigureFile) -> None:
        code = program.code.encode("utf-8", "replace").decode()
        told = (program.language, code, program.seed, dict(program.files))
        self._launcher = self._slot.launcher(is_heavy=self._is_heavy)
        with ExitStack() as opened:
            files = {
                "program": opened.enter_context(memory_file(marshal.dumps(told))),
                "stdin": opened.enter_context(memory_file(program.stdin)),
                "stdout": stdout.writing,
                "stderr": stderr.writing,
                "figures": figures.descriptor,
                **self._slot.group_files(self._limits),
            }
            self._number = await self._launcher.start(spec_of("run", self._limits), files, self._hear)
        if self._ended_by:
            self.end(self._ended_by)  # it was cancelled meanwhile

    def _hear(self, event: Event) -> None:
        if event["event"] == "died" and not self._died.done():
            self._died.set_result(event)


def _ending(event: Mapping[str, Any]) -> Ending:
    """Return what the zygote saw."""
    if "broken" in event:
        return Ending(broken=event["broken"], usage=usage_of(event))
    ended_by = event["reason"] or ("memory" if event["out_of_memory"] else "")
    first, *hints = event["hints"] or [""]
    ending = Ending(ended_by=ended_by, usage=usage_of(event))
    if ended_by:
        return ending
    if "status" not in event:
        return replace(ending, broken="process 1 ended without a word")
    if first.startswith(REFUSED):
        return replace(ending, refused=first.removeprefix(REFUSED))
    if first != READY:
        return replace(ending, broken=f"the worker did not start: {first}")
    seen = {"disk": event["is_full"], "pids": event["out_of_processes"]}
    met = [*hints, *(status for status, is_so in seen.items() if is_so)]
    return replace(ending, code=os.waitstatus_to_exitcode(event["status"]), met=met)


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    return tuple(name for name in _HEAVY if importlib.util.find_spec(name) is not None)
