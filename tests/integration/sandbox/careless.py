"""Hosts without any layer, each with one more mistake: what is not contained there proves that judges can fail."""

import asyncio
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentflow.sandbox.base import Limits, Output, Program, Result, Session

_PATIENCE_S = 5.0
_SERVING_S = 30.0
_PIPE_BYTES = 1 << 17


class Plain:
    """Run programs as children of this process: no limit, no layer, one folder for all, nothing ended or removed."""

    name = "plain"

    def __init__(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="agentflow-plain-"))
        self.work = self._scratch / "a" / "work"  # so deep that two steps above are still inside
        self.work.mkdir(parents=True)
        self._started: list[subprocess.Popen[bytes]] = []

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program."""
        return await asyncio.to_thread(self._run, program)

    async def session(self, limits: Limits | None = None) -> Session:
        """Sessions are not to be had here."""
        raise NotImplementedError

    async def close(self) -> None:
        """End what was started, and remove the folder, however deep it is."""
        for process in self._started:
            process.kill()
            process.wait()
        await asyncio.to_thread(subprocess.run, ["rm", "-rf", str(self._scratch)], check=True)

    def play(self, program: Program, **options: Any) -> Result:
        """Start, feed and wait for a program; whoever holds its streams is not waited for."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(words(program), stdout=out, stderr=err, **options)
            assert process.stdin is not None, "made with a pipe"
            with process.stdin as stream:
                stream.write(program.stdin)
            code = process.wait(_PATIENCE_S)
            said = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in (out, err)]
        return ended(code, *said)

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start a child with all that this process has, in the folder of all."""
        own: dict[str, Any] = {"stdin": subprocess.PIPE, "cwd": self.work, "env": os.environ | {"HOME": str(self.work)}}
        self._started.append(subprocess.Popen(command, **(own | options)))
        return self._started[-1]

    def _run(self, program: Program) -> Result:
        try:
            for name, content in program.files.items():
                path = Path(f"{self.work}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return self.play(program)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return Result("infra_error", detail=f"{type(error).__name__}: {error}")


class BelievesWords(Plain):
    """Take what a program writes about an exit code for the launcher's word."""

    def play(self, program: Program, **options: Any) -> Result:
        """Run a program."""
        result = super().play(program, **options)
        return told(result, result.stdout.head + result.stderr.head) or result


class AsksTheProgram(Plain):
    """Have the program's own process tell through a pipe that it began, and at its end the exit code."""

    _HEAD = """
import atexit, os
def _tell(code): os.write({0}, b'{{"exit_code": %d}}' % code)
def _told(code, end=os._exit):
    _tell(code)
    end(code)
os._exit = _told
atexit.register(_tell, 0)
os.write({0}, b"begun ")
"""

    def play(self, program: Program, **options: Any) -> Result:
        """Run a program."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            program = replace(program, code=self._HEAD.format(writing) + program.code)
            result = super().play(program, pass_fds=[writing], **options)
            said = os.read(reading, _PIPE_BYTES)
        finally:
            os.close(reading)
            os.close(writing)
        silent = Result("infra_error", detail="the program has not told how it ended")
        return (told(result, said) if said.startswith(b"begun ") else None) or silent


class ExpectsText(Plain):
    """Take output for text."""

    def play(self, program: Program, **options: Any) -> Result:
        """Run a program."""
        result = super().play(program, **options)
        result.stdout.head.decode()
        return result


class RemovesByPath(Plain):
    """Remove the files of a program when it has ended, one path after the other."""

    def play(self, program: Program, **options: Any) -> Result:
        """Run a program."""
        result = super().play(program, **options)
        for folder, _, _ in os.walk(self.work, topdown=False):
            os.rmdir(folder)
        return result


class OneInterpreter(Plain):
    """Run every program in the same process, which is apart from the host only where a program would hurt it."""

    _ENTRY = """
mount -t tmpfs scratch "$1" && mkdir "$1/new" "$1/work" &&
mount -t overlay -o "lowerdir=$2,upperdir=$1/new,workdir=$1/work" overlay "$2" && shift 2 && exec "$@"
"""
    _SERVE = """
import json, os, signal, sys
host = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    code, *streams = json.loads(line)
    for at, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), at)
    exec(code, {"__name__": "__main__"})
    signal.alarm(0)
    open("/proc/self/comm", "w").write("server")
    print("ended", file=host, flush=True)
"""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None

    def play(self, program: Program, **options: Any) -> Result:
        """Run a program."""
        with self._turn:
            server = self._server = self._server or self._serve()
            assert server.stdin is not None and server.stdout is not None, "made with pipes"
            streams = [self._scratch / name for name in ("out", "err")]
            server.stdin.write(json.dumps([program.code, *map(str, streams)]).encode() + b"\n")
            server.stdin.flush()
            # Whoever was forked there holds its end of the pipe, so that even an end would not be read.
            if not select.select([server.stdout], [], [], _SERVING_S)[0]:
                raise TimeoutError("the interpreter does not say that the program has ended")
            if server.stdout.readline() != b"ended\n":
                raise BrokenPipeError("the interpreter has ended")
            return ended(0, *(stream.read_bytes() for stream in streams))

    def _serve(self) -> "subprocess.Popen[bytes]":
        scratch = self._scratch / "scratch"
        scratch.mkdir()
        apart = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", self._ENTRY, "sh"]
        places = [str(scratch), os.path.dirname(os.__file__)]
        return self.start([*apart, *places, sys.executable, "-c", self._SERVE], stdout=subprocess.PIPE)


def words(program: Program) -> list[str]:
    """Return the command for a program."""
    if program.language == "shell":
        return ["sh", "-c", program.code]
    return [sys.executable, "-c", f"import sys; sys.path.append('.')\n{program.code}"]


def ended(code: int, out: bytes, err: bytes) -> Result:
    """Return the result of a process that ended with a code, or by a signal where that is negative."""
    stdout, stderr = Output(out, b"", len(out)), Output(err, b"", len(err))
    if code < 0:
        return Result("signal", signal=-code, stdout=stdout, stderr=stderr)
    return Result("nonzero_exit" if code else "ok", exit_code=code, stdout=stdout, stderr=stderr)


def told(result: Result, said: bytes) -> Result | None:
    """Return a result with the first exit code that was told; None if none was."""
    found = re.search(rb'"exit_code": (\d+)', said)
    return ended(int(found[1]), result.stdout.head, result.stderr.head) if found else None
