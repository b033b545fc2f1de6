"""The network that all programs of a zygote may share for as long as none of them has left a trace in it."""

import os

_BYTES = 1 << 16


class Network:
    """Sees whether anything was ever sent in this process's network, tried or labelled: all that can be left there."""

    _COUNTERS = ("dev", "snmp", "snmp6", "netstat", "ip6_flowlabel")

    def __init__(self) -> None:
        names = [f"/proc/self/net/{name}" for name in self._COUNTERS]
        self._files = [os.open(name, os.O_RDONLY | os.O_CLOEXEC) for name in names if os.path.exists(name)]
        self._is_used = False
        self._unused = self._read()

    def is_used(self) -> bool:
        """Say whether a program has left traces; once it has, the answer stays."""
        self._is_used = self._is_used or self._read() != self._unused
        return self._is_used

    def _read(self) -> list[bytes]:
        return [os.pread(file, _BYTES, 0) for file in self._files]
