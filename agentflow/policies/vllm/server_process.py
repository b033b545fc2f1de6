"""The processes of a vLLM server of ours: what they see of this one, and how they end."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PLUGIN = "agentflow.policies.vllm.server_plugin"
_SHARED_WITH_SERVERS = ("server_plugin.py", "copies.py", "digests.py", "gpu_memory.py")
_PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD")
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "VLLM_", "OMP_", "GOMP_", "KMP_")
_KEPT_BACK = re.compile("KEY|TOKEN|SECRET|PASSWORD|^VLLM_PLUGINS$")  # secrets, and what would hide our plugin
_ENDING_S, _POLL_S = 5.0, 0.02
# Waits until whoever started the server is gone, however it went: the pipe that is read then closes. Processes that may
# end by themselves give their shared memory back.
_WATCH = f"""
read -r _
kill -TERM -"$1"
for _ in $(seq {_ENDING_S / 0.1:.0f}); do kill -0 -"$1" || break; sleep 0.1; done
kill -KILL -"$1"
rm -rf "$2"
"""


class ServerProcess:
    """A server, and all that it starts; it ends when this process does.

    Args:
        words: Its command line.
        folder: Its own folder, which goes with it; it writes what passes there.
        environment: Environment variables besides those of this process that it may see, which could be no secret.
        log: Where its output goes; None for where ours goes.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, *, environment: Mapping[str, str], log: IO[bytes] | None = None
    ) -> None:
        self._folder = folder
        self._ending, self._has_ended = threading.Lock(), False
        _write_plugin(folder)
        known = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
        safe = {k: v for k, v in known.items() if not _KEPT_BACK.search(k)}
        self._process = subprocess.Popen(
            words,
            env={**safe, "PYTHONPATH": str(folder), "TMPDIR": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log and subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
        )
        theirs, self._lifeline = os.pipe()
        try:
            # In a session of its own, so that no signal to this process or to the server ends it.
            self._watch = subprocess.Popen(
                ["sh", "-c", _WATCH, "sh", str(self._process.pid), str(folder)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._signal(signal.SIGKILL)
            os.close(self._lifeline)
            raise
        finally:
            os.close(theirs)

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Return the exit code once it has ended."""
        return self._process.wait()

    def end(self) -> None:
        """End every process of the server, and remove its folder; what may end by itself gives its memory back."""
        with self._ending:
            if not self._has_ended:
                self._end()
                self._has_ended = True

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            is_left, deadline = self._signal(number), time.monotonic() + _ENDING_S
            while is_left and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                is_left = self._signal(0)
        self._watch.kill()
        self._watch.wait()
        os.close(self._lifeline)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: int) -> bool:
        """Send a signal to all processes of the server; False where none is left."""
        self._process.poll()  # one that nobody has waited for would count for ever
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _write_plugin(folder: Path) -> None:
    """Put into a folder what a server imports of AgentFlow, and the entry point by which vLLM finds it."""
    package = folder
    for part in PLUGIN.split(".")[:-1]:
        package = package / part
        package.mkdir()
        (package / "__init__.py").touch()
    for name in _SHARED_WITH_SERVERS:
        shutil.copy(Path(__file__).with_name(name), package)
    info = folder / "agentflow_server_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agentflow-server-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\nagentflow = {PLUGIN}:register\n")
