"""A Python interpreter that forks itself for each execution: started once, it has imported what programs need.

It runs in a process of its own, in the read-only system of `system`, and talks with the host in packets of JSON. It
watches CPU, memory and wall time of what it forked, so that a busy host judges nobody.
"""

import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentflow.sandbox.limits.meter import FILES, GroupMeter, Meter, Sample, TreeMeter
from agentflow.sandbox.limits.process_tree import kill_tree, tree_usage
from agentflow.sandbox.limits.seccomp import bpf_filter
from agentflow.sandbox.process import namespaces, system
from agentflow.sandbox.process.child import Child, Watch, handle_of, number_inside
from agentflow.sandbox.process.network import Network
from agentflow.sandbox.process.worker import (
    OwnBytes,
    Start,
    become_first,
    gaps_between,
    hint_channel,
    limits_of,
    read_hints,
)

_PACKET_BYTES = 1 << 16
_MAX_FILES = 16
_SPARE_FILES = 32
"""Descriptors that no execution takes, so that those under way can still be watched and ended."""
_WORKERS = ("hints", "figures", "channel")
"""Files that stay open in the worker, beside its streams."""
_MEEKNESS = 5
_MIN_WAIT_S = 0.005
_RESTING_S = 1.0
_CORES = os.cpu_count() or 1


class Zygote:
    """Fork executions on demand and tell how they ended.

    Args:
        control: The socket to the host.
        steps: The system-call filter of its executions.
    """

    def __init__(self, control: socket.socket, steps: bytes) -> None:
        self._control = control
        self._children: dict[int, Child] = {}
        self._by_handle: dict[int, Child] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._filter = namespaces.Filter(steps)
        self._network = Network()
        with open("/proc/self/status") as file:
            status = dict(line.split(":", 1) for line in file)
        self._own_bytes = OwnBytes(*(int(status[name].split()[0]) << 10 for name in ("VmData", "VmSize")))
        self._shared_mb = int(status["VmRSS"].split()[0]) / 1024

    def serve(self) -> None:
        """Work until the host hangs up, then end everything."""
        while self._step():
            self._judge_all()
        for child in list(self._children.values()):
            self._kill(child)
            os.wait4(child.pid, 0)

    def _step(self) -> bool:
        for descriptor, _ in self._poll.poll(self._wait_ms()):
            if descriptor == self._control.fileno():
                if not self._receive():
                    return False
            elif descriptor in self._by_handle:
                self._bury(self._by_handle[descriptor])
        return True

    def _receive(self) -> bool:
        packet, files, _, _ = socket.recv_fds(self._control, _PACKET_BYTES, _MAX_FILES)
        if not packet:
            return False
        asked = json.loads(packet)
        if asked["op"] == "start":
            self._start(asked, files)
            return True
        child = self._children.get(asked["number"])
        if child is not None:
            with self._answerable(child):
                getattr(self, f"_{asked['op']}")(child, asked)
        return True

    @contextmanager
    def _answerable(self, child: Child) -> Iterator[None]:
        """Have what breaks over one child end that child, and no other."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a program brought it about, whatever it is
            child.broken = child.broken or f"it cannot be watched: {type(error).__name__}: {error}"
            self._stop(child, "unwatched", None)

    def _start(self, asked: dict[str, Any], files: list[int]) -> None:
        # Where it has no room for all of them, some are missing.
        named = dict(zip(asked["names"], files, strict=False))
        kept = [descriptor for name, descriptor in named.items() if name in FILES]
        given = [descriptor for name, descriptor in named.items() if name not in FILES]
        try:
            child = self._begin(asked, named, given=given, kept=kept)
        except OSError as error:
            _close_all(kept)
            self._tell({"event": "died", "number": asked["number"], "broken": f"it cannot be started: {error}"})
            return
        finally:
            _close_all(given)
        self._children[child.number] = child
        if child.watch is not None:
            self._look_again(child, child.watch)

    def _begin(self, asked: dict[str, Any], files: dict[str, int], *, given: list[int], kept: list[int]) -> Child:
        """Fork process 1; `given` is closed then, `kept` once it has ended."""
        reading, writing = os.pipe()
        kept.append(reading)
        given.append(writing)
        hints, hinting = hint_channel()
        kept.append(hints)
        given.append(hinting)
        self._check_room(hinting, is_whole=len(files) == len(asked["names"]))
        spec = asked["spec"]
        spec["has_group"] = "cpu" in files
        meter: Meter | None = GroupMeter(files) if spec["has_group"] else None
        inside = {name: descriptor for name, descriptor in files.items() if name not in FILES}
        start = self._prepared(spec, {**inside, "hints": hinting}, report=writing)
        started_at = time.monotonic()
        pid = namespaces.clone(namespaces.OF_A_PROGRAM | (namespaces.NEW_NETWORK if start.has_network else 0))
        if pid == 0:
            become_first(start)
        handle = handle_of(pid)
        kept.append(handle)
        child = Child(
            asked["number"],
            pid,
            handle,
            reading,
            hints,
            meter or TreeMeter(pid, self._shared_mb),
            memory_mb=spec["memory_mb"],
            max_processes=spec["max_processes"],
            cpu_s=spec["cpu_s"],
            has_group=spec["has_group"],
            started_at=started_at,
            watch=None if start.is_session else Watch(spec["cpu_s"], started_at + spec["wall_s"], None),
        )
        self._by_handle[handle] = child
        self._poll.register(handle, select.POLLIN)
        return child

    def _prepared(self, spec: dict[str, Any], files: dict[str, int], *, report: int) -> Start:
        is_session = spec["kind"] == "session"
        return Start(
            is_session=is_session,
            user=os.getuid(),
            group=os.getgid(),
            files=files,
            report=report,
            closing=gaps_between(report, *files.values()),
            closing_in_worker=gaps_between(*(files[name] for name in _WORKERS if name in files)),
            closing_in_first=gaps_between(report),
            work_options=f"size={spec['disk_mb']}m,nr_inodes={spec['max_files']},mode=0700",
            # One program runs at a time: until one has left traces, the zygote's network is as good as a new one.
            has_network=is_session or self._network.is_used(),
            limits=limits_of(spec, self._own_bytes),
            # Without a control group the zygote looks at memory, which must not wait for the program's turn.
            meekness=0 if spec["has_group"] else _MEEKNESS,
            steps=self._filter,
        )

    def _check_room(self, newest: int, *, is_whole: bool) -> None:
        """Refuse a start that would take the last descriptors."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if not is_whole or newest >= most - _SPARE_FILES:
            raise OSError(
                f"{len(self._children)} sessions and programs leave none of the {most} files that one process may have "
                "open. Close sessions, or raise the hard limit (`ulimit -Hn`)."
            )

    def _watch(self, child: Child, asked: dict[str, Any]) -> None:
        """Begin a cell: its limits count from here."""
        child.last = child.cell_from = child.meter.sample()
        child.cell_at = time.monotonic()
        child.watch = Watch(child.last.cpu_s + asked["cpu_s"], time.monotonic() + asked["wall_s"], asked["pid"])
        self._look_again(child, child.watch)

    def _rest(self, child: Child, asked: dict[str, Any]) -> None:
        """End a cell; what goes on in the background until the next one has its own allowance."""
        if child.reason:
            return  # it is being ended: that it died is the answer
        now = child.meter.sample()
        used_s = now.cpu_s - child.cell_from.cpu_s
        wall_s = time.monotonic() - child.cell_at
        child.last = now
        child.watch = Watch(now.cpu_s + asked["cpu_s"], math.inf, None, _RESTING_S)
        self._look_again(child, child.watch)
        shown = _shown(now) | {"cpu_s": used_s, "wall_s": wall_s}
        self._tell({"event": "rests", "number": child.number, **shown})

    def _end(self, child: Child, asked: dict[str, Any]) -> None:
        """End an execution, or one branch of it."""
        self._stop(child, asked["reason"], asked["pid"])

    def _judge_all(self) -> None:
        now = time.monotonic()
        for child in list(self._children.values()):
            watch = child.watch
            if watch is None or child.reason or now < child.due_at:
                continue
            with self._answerable(child):
                self._judge(child, watch)

    def _judge(self, child: Child, watch: Watch) -> None:
        child.last = child.meter.sample()
        reason = self._exceeded(child, watch, child.last)
        if reason:
            self._stop(child, reason, watch.pid)
        else:
            self._look_again(child, watch)

    def _look_again(self, child: Child, watch: Watch) -> None:
        """Set when a child may have exceeded its limits at the earliest, or what its meter cannot miss is over."""
        now = time.monotonic()
        soon = min((watch.cpu_s - child.last.cpu_s) / _CORES, watch.ends_at - now)
        usual = child.meter.interval_s if math.isinf(watch.interval_s) else watch.interval_s
        child.due_at = now + min(max(_MIN_WAIT_S, soon), usual)

    def _exceeded(self, child: Child, watch: Watch, sample: Sample) -> str:
        if sample.cpu_s > watch.cpu_s:
            return "cpu_timeout"
        if sample.out_of_memory or (not child.has_group and sample.memory_mb > child.memory_mb):
            return "memory"
        # The kernel's own limit does not hold for what is root outside.
        if sample.num_processes > child.max_processes:
            return "pids"
        return "wall_timeout" if time.monotonic() > watch.ends_at else ""

    def _stop(self, child: Child, reason: str, pid: int | None) -> None:
        if pid is None:
            child.reason = child.reason or reason
            self._kill(child)
            return
        found = [outside for outside in tree_usage(child.pid).pids if number_inside(outside) == pid]
        if not found and reason != "closed":
            # Whoever goes on in its name cannot be told from the others.
            self._stop(child, reason, None)
            return
        for outside in found:
            kill_tree(outside)
        child.watch = Watch(child.meter.sample().cpu_s + child.cpu_s, math.inf, None, _RESTING_S)
        self._look_again(child, child.watch)
        self._tell({"event": "stopped", "number": child.number, "pid": pid, "reason": reason})

    def _kill(self, child: Child) -> None:
        signal.pidfd_send_signal(child.handle, signal.SIGKILL)

    def _bury(self, child: Child) -> None:
        try:
            last = child.meter.sample() if child.has_group else child.last
            told = json.loads(os.read(child.report, _PACKET_BYTES) or b"{}")
        except (OSError, ValueError) as error:
            last, told = child.last, {"broken": f"its end cannot be read: {error}"}
        _, _, used = os.wait4(child.pid, 0)
        if not child.has_group:
            last = Sample(max(last.cpu_s, used.ru_utime + used.ru_stime), max(last.memory_mb, used.ru_maxrss / 1024))
        event = {"event": "died", "number": child.number, "reason": child.reason, "hints": read_hints(child.hints)}
        event["wall_s"] = time.monotonic() - child.started_at
        self._tell(event | _shown(last) | ({"broken": child.broken} if child.broken else told))
        self._poll.unregister(child.handle)
        del self._children[child.number], self._by_handle[child.handle]
        _close_all((child.handle, child.report, child.hints))
        child.meter.close()

    def _wait_ms(self) -> float | None:
        due = [child.due_at for child in self._children.values() if child.watch is not None and not child.reason]
        return max(0.0, min(due) - time.monotonic()) * 1000 if due else None

    def _tell(self, what: dict[str, Any]) -> None:
        self._control.send(json.dumps(what).encode())


def _shown(sample: Sample) -> dict[str, Any]:
    return {
        "cpu_s": sample.cpu_s,
        "memory_mb": sample.memory_mb,
        "out_of_memory": sample.out_of_memory,
        "out_of_processes": sample.out_of_processes,
    }


def _close_all(files: Sequence[int]) -> None:
    for descriptor in files:
        os.close(descriptor)


def _ensure_alone(name: str) -> None:
    """Refuse to go on with threads: a fork has none of them, but the locks that they held."""
    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads > 1:
        raise RuntimeError(
            f"importing {name} leaves {num_threads} threads, and a zygote forks only with one: "
            f"have {name} start them when it is used, or do not preload it"
        )


def main(control: socket.socket, *, user: int | None, packages: Sequence[str], preload: Sequence[str]) -> None:
    """Leave the host, import, say so, and serve.

    Args:
        control: The socket to the host.
        user: Whom to become, where this process is root; None where it is not.
        packages: What programs may see of the installed packages, see `packages.shown_paths`.
        preload: Modules that executions will find imported.
    """
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each session takes some
        steps = bpf_filter()  # its list is a file of the host's
        system.enter(user, packages)
        for name in preload:
            importlib.import_module(name)
            _ensure_alone(name)
        namespaces.take_large_pages()
        zygote = Zygote(control, steps)
    except Exception as error:  # noqa: BLE001  whatever it is, the host must hear of it
        control.send(json.dumps({"event": "failed", "detail": f"{type(error).__name__}: {error}"}).encode())
        return
    # Programs must not find this package imported. What runs here keeps what it needs of it.
    for name in [name for name in sys.modules if name.split(".")[0] == "agentflow"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"event": "ready"}).encode())
    zygote.serve()
