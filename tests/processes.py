"""Child processes that end with the test that started them, whatever happens in it."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

PATIENCE_S = 300.0
"""How long a process may take unless a test says otherwise: long enough on a busy machine, and shorter than a test."""


@contextmanager
def started(
    words: Sequence[str], *, patience_s: float = PATIENCE_S, **options: Any
) -> Iterator["subprocess.Popen[Any]"]:
    """Start a process, and kill it at the end or once its time is up, so that nobody waits or reads for ever.

    Args:
        words: The command.
        patience_s: Seconds that it may take.
        options: As of `subprocess.Popen`; a process with a session of its own is killed with its whole group.
    """
    with subprocess.Popen(words, **options) as process:
        kill = partial(_kill, process, has_group=options.get("start_new_session", False))
        watchdog = threading.Timer(patience_s, kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            kill()


def _kill(process: "subprocess.Popen[Any]", *, has_group: bool) -> None:
    if not has_group:
        process.kill()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
