"""What runs first inside a sandbox: read as text by the backends, behind `guest_figures.py`, and never imported.

It lowers the limits that only hold when they are set in here, then becomes the program: argv is
[path of the source, language, seed, max_processes, memory_bytes, cpu_s, file_bytes, descriptor for plots].
"""

import linecache
import os
import random
import resource
import sys
import traceback
from types import TracebackType

SHOWN_AS = "program.py"
MAX_OPEN_FILES = 256


def lower(kind: int, value: int) -> None:
    """Set a limit for good."""
    resource.setrlimit(kind, (value, value))


def main() -> None:
    """Run the program."""
    path, language, *numbers = sys.argv[1:]
    seed, max_processes, memory_bytes, cpu_s, file_bytes, figures = map(int, numbers)
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    lower(resource.RLIMIT_FSIZE, file_bytes)
    lower(resource.RLIMIT_CPU, cpu_s)
    lower(resource.RLIMIT_AS, memory_bytes)
    # Within the user namespace only its own processes count.
    lower(resource.RLIMIT_NPROC, max_processes)
    os.set_inheritable(figures, False)
    if language == "shell":
        os.execv("/bin/sh", ["sh", path])  # noqa: S606
    with open(path, encoding="utf-8", errors="replace") as file:
        source = file.read()
    random.seed(seed)
    sys.argv = [SHOWN_AS]
    linecache.cache[SHOWN_AS] = (len(source), None, source.splitlines(keepends=True), SHOWN_AS)

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        while trace and trace.tb_frame.f_code.co_filename != SHOWN_AS:
            trace = trace.tb_next  # what leads to the program is not its own
        traceback.print_exception(kind, error, trace)

    sys.excepthook = shown
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        exec(compile(source, SHOWN_AS, "exec"), names)  # noqa: S102  this is the sandbox
    finally:
        save_figures(figures)  # type: ignore[name-defined]  # noqa: F821  it stands before this file's text


main()
