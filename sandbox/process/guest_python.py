"""Python inside a sandbox: a program as `__main__`, or cells that share their variables."""

import ast
import atexit
import errno
import importlib
import json
import linecache
import os
import random
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import CodeType, ModuleType
from typing import Any, NoReturn

from agentflow.sandbox.guest_figures import save_figures

VALUE_BYTES = 1 << 14
_MESSAGE_BYTES = 1 << 16
_SUBREAPER = 36
_WORDS = {errno.ENOSPC: "disk", errno.EFBIG: "disk", errno.EDQUOT: "disk", errno.EAGAIN: "pids"}
Hint = Callable[[str], None]


def run_program(code: str, seed: int, hint: Hint, *, figures: int) -> NoReturn:
    """Run a program as an interpreter would, write its plots to a file, and end the process with its exit code."""
    names = _fresh_main("program.py")
    _set_seeds(seed, code)
    failed = _guarded(lambda: exec(_compiled(code, "program.py"), names), hint)  # noqa: S102  this is the sandbox
    _finish(_guarded(lambda: save_figures(figures), hint) or failed)


def serve_cells(channel: socket.socket, *, figures: int) -> NoReturn:
    """Run cells until the host hangs up; every message is one packet of JSON, code and streams come as descriptors."""
    names = _fresh_main("cell")
    _set_seeds(0, "")
    _be_subreaper(True)
    _send(channel, {"pid": os.getpid()})
    number = 0
    while True:
        message, files, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        asked = json.loads(message)
        if asked["op"] == "fork":
            channel = _branch(channel, files[0])
            continue
        number += 1
        _send(channel, _run_cell(names, files, name=f"cell {number}", figures=figures) | {"token": asked["token"]})


def _run_cell(names: dict[str, Any], files: list[int], *, name: str, figures: int) -> dict[str, Any]:
    source, stdout, stderr = files
    with os.fdopen(source, "rb") as file:
        code = file.read().decode("utf-8", "surrogatepass")
    for descriptor, target in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, target)
        os.close(descriptor)
    shown: list[str] = []

    def work() -> None:
        body, last = _split(code, name)
        exec(body, names)  # noqa: S102  this is the sandbox
        value = eval(last, names) if last is not None else None  # noqa: S307
        if value is not None:
            names["_"] = value
            shown.append(repr(value))

    words: list[str] = []
    exit_code = _guarded(work, words.append)
    exit_code = _guarded(lambda: save_figures(figures), words.append) or exit_code
    _flush()
    silent = os.open(os.devnull, os.O_WRONLY)
    for target in (1, 2):
        os.dup2(silent, target)
    os.close(silent)
    text = "".join(shown).encode("utf-8", "backslashreplace")[:VALUE_BYTES].decode("utf-8", "ignore")
    return {"exit_code": exit_code, "value": text, "words": words}


def _branch(channel: socket.socket, descriptor: int) -> socket.socket:
    """Go on as two: the copy on the new channel is no child of this process, so that it outlives it."""
    _be_subreaper(False)
    try:
        child = os.fork()
    except OSError as error:
        with socket.socket(fileno=descriptor) as refused:
            _send(refused, {"refused": str(error)})
        _be_subreaper(True)
        return channel
    if child:
        os.close(descriptor)
        os.waitpid(child, 0)
        _be_subreaper(True)
        return channel
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    channel.close()
    branch = socket.socket(fileno=descriptor)
    _be_subreaper(True)
    _send(branch, {"pid": os.getpid()})
    return branch


def _be_subreaper(wanted: bool) -> None:
    import ctypes  # noqa: PLC0415  loaded by the zygote; here it costs nothing

    ctypes.CDLL(None).prctl(_SUBREAPER, ctypes.c_ulong(wanted), 0, 0, 0)


def _send(channel: socket.socket, what: Mapping[str, Any]) -> None:
    try:
        channel.send(json.dumps(what).encode())
    except OSError:
        os._exit(0)


def _split(code: str, name: str) -> tuple[CodeType, CodeType | None]:
    """Compile a cell; its last statement apart, if that is an expression."""
    _remember(code, name)
    tree = ast.parse(code, name)
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        return compile(tree, name, "exec"), None
    last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    return compile(tree, name, "exec"), compile(last, name, "eval")


def _compiled(code: str, name: str) -> CodeType:
    _remember(code, name)
    return compile(code, name, "exec", dont_inherit=True)


def _remember(code: str, name: str) -> None:
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)


def _fresh_main(name: str) -> dict[str, Any]:
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = [name]
    sys.path.insert(0, os.getcwd())
    return main.__dict__


def _set_seeds(seed: int, code: str) -> None:
    random.seed(seed)
    if "numpy" in code or "numpy" in sys.modules:
        try:
            importlib.import_module("numpy.random").seed(seed % 2**32)
        except ImportError:
            return


def _guarded(work: Callable[[], Any], hint: Hint) -> int:
    """Run code; print its traceback, hint at the limit that it ran into, return its exit code."""
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001  all that a program may raise
        _explain(error, hint)
        return 1
    return 0


def word_of(error: BaseException) -> str:
    """Name the limit that an error tells of; empty if it tells of none."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError):
        return _WORDS.get(error.errno or 0, "")
    return "pids" if isinstance(error, RuntimeError) and "can't start new thread" in str(error) else ""


def _explain(error: BaseException, hint: Hint) -> None:
    word = word_of(error)
    if word:
        hint(word)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        traceback.print_exception(type(error), error, trace)
    except Exception:  # noqa: BLE001  the error is the program's own class, and may do anything
        print(f"{type(error).__name__} (its traceback cannot be shown)", file=sys.stderr)


def _finish(exit_code: int) -> NoReturn:
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:  # noqa: BLE001  all that a program may raise
        _explain(error, lambda word: None)
    os._exit(exit_code if _flush() else exit_code or 120)


def _flush() -> bool:
    is_written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001  the program may have put anything there
            is_written = False
    return is_written
