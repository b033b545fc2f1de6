"""What the host lays out to be found: files, sockets, variables, descriptors and processes that hold a secret."""

import contextlib
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

_VARIABLE = "AGENTFLOW_ATTACK_BAIT"
_ROUTE = ("192.0.2.1", 9)  # an address that nobody has: only the way to it is looked up
_SHARED = Path("/dev/shm")  # noqa: S108  it is bait


class Bait:
    """Lay out the bait; use it as a context manager."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(12)
        self.received = bytearray()
        self._opened = ExitStack()
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self.shown: dict[str, Any] = {}
        """What attacks are told: where to look, and no secret."""

    def __enter__(self) -> Self:
        """Lay it out."""
        word = secrets.token_hex(4)
        folder = Path(tempfile.mkdtemp(prefix="agentflow-bait-"))
        self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        shared = _SHARED / f"agentflow-bait-{word}"
        self._opened.callback(shared.unlink, missing_ok=True)
        for file in (folder / "secret", shared):
            file.write_text(self.secret)
            file.chmod(0o644)
        # Inheritable, as a careless launcher would pass it on.
        descriptor = os.open(folder / "secret", os.O_RDONLY)
        self._opened.callback(os.close, descriptor)
        os.set_inheritable(descriptor, True)
        os.environ[_VARIABLE] = self.secret
        self._opened.callback(os.environ.pop, _VARIABLE, None)
        self.shown = {"folder": str(folder), "shared": str(shared), "variable": _VARIABLE, "word": word}
        self._listen(folder, word)
        self.shown["victim"] = self.victim().pid
        self.shown["home"] = str(Path.home())
        threading.Thread(target=self._serve, name="bait", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self._stop.set()
        self._opened.close()

    def victim(self) -> "subprocess.Popen[bytes]":
        """Start a process of the host that knows the secret and does nothing."""
        words = [f"bait-{self.secret}", "120"]
        process = subprocess.Popen(
            words, executable=shutil.which("sleep"), env={_VARIABLE: self.secret}, start_new_session=True
        )
        self._opened.callback(process.wait)
        self._opened.callback(process.kill)
        return process

    def _listen(self, folder: Path, word: str) -> None:
        path = folder / "socket"
        unix = (f"\0agentflow-{word}", socket.SOCK_STREAM), (f"\0agentflow-{word}-d", socket.SOCK_DGRAM)
        for name, kind in (*unix, (str(path), socket.SOCK_STREAM)):
            self._open(socket.AF_UNIX, kind, name)
        path.chmod(0o777)
        self.shown["abstract"], self.shown["datagrams"], self.shown["path"] = unix[0][0], unix[1][0], str(path)
        self.shown["port"] = self._open(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.shown["udp"] = self._open(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self.shown["port6"] = self.shown["own"] = self.shown["own_port"] = 0
        with contextlib.suppress(OSError):
            self.shown["port6"] = self._open(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(_ROUTE)
            self.shown["own"] = way.getsockname()[0]
            self.shown["own_port"] = self._open(socket.AF_INET, socket.SOCK_STREAM, (self.shown["own"], 0))

    def _open(self, family: int, kind: int, address: Any) -> Any:
        stream = self._opened.enter_context(socket.socket(family, kind))
        stream.bind(address)
        stream.setblocking(False)
        if kind == socket.SOCK_STREAM:
            stream.listen(64)
        self._selector.register(stream, selectors.EVENT_READ, kind)
        return stream.getsockname()[1] if family != socket.AF_UNIX else address

    def _serve(self) -> None:
        while not self._stop.is_set():
            for stream, kind in self._ready():
                with contextlib.suppress(OSError):
                    self._answer(stream, kind)

    def _ready(self) -> Iterator[tuple[Any, int]]:
        with contextlib.suppress(OSError, ValueError):  # it is being taken away
            yield from [(key.fileobj, key.data) for key, _ in self._selector.select(0.1)]

    def _answer(self, stream: socket.socket, kind: int) -> None:
        if kind == socket.SOCK_DGRAM:
            self.received += stream.recv(256) + b"\n"
            return
        caller, _ = stream.accept()
        with caller:
            caller.sendall(self.secret.encode())
