"""What runs a shell command inside a sandbox: read as text by `agentflow.tools.shell`, and never imported.

stdin is the command's size and the pack of files behind it; stdout takes what the command writes to both its streams;
stderr takes one line with its exit code, then the pack of what is there afterwards. A command that found a way to
write there too could claim what files it likes, which are its own anyway.
"""

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress

FOLDER = "workspace"


def fill() -> str:
    """Write the files, and return the command."""
    size = int(sys.stdin.buffer.readline())
    command = sys.stdin.buffer.read(size).decode()
    entries = json.loads(sys.stdin.buffer.readline())
    for name, length, executable in entries:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(sys.stdin.buffer.read(length))
        os.chmod(name, 0o755 if executable else 0o644)
    return command


def found(folder: str, max_files: int) -> list[tuple[str, int, bool]]:
    """List regular files; links, sockets and what cannot be read are left out."""
    entries: list[tuple[str, int, bool]] = []
    for above, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(above, name)
            seen = os.lstat(path)
            if stat.S_ISREG(seen.st_mode) and os.access(path, os.R_OK):
                entries.append((path[2:], seen.st_size, bool(seen.st_mode & stat.S_IXUSR)))
        if len(entries) > max_files:
            break
    return entries


def read(path: str, size: int) -> bytes:
    """Read a file that may have changed since it was listed, to the size that was told."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read(size).ljust(size, b"\0")


def main() -> None:
    """Run the command and tell what came of it."""
    max_files, max_bytes = map(int, sys.argv[1:] or LIMITS)  # type: ignore[name-defined]  # noqa: F821  set by shell.py
    os.mkdir(FOLDER)
    os.chdir(FOLDER)
    home = os.getcwd()
    command = fill()
    words = ["/bin/sh", "-c", command]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
    code = process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left in the background no longer writes
    os.chdir(home)
    entries = found(".", max_files)
    problem = ""
    if len(entries) > max_files:
        problem = "files"
    elif sum(size for _, size, _ in entries) > max_bytes:
        problem = "bytes"
    told = sys.stderr.buffer
    told.write(json.dumps({"code": code, "problem": problem}).encode() + b"\n")
    if not problem:
        told.write(json.dumps(entries).encode() + b"\n")
        for path, size, _ in entries:
            told.write(read(path, size))
    told.flush()


main()
