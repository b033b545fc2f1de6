"""What the zygote does where the watching of one execution breaks."""

import json
import os
import select
import socket
import subprocess
import time

from agentflow.sandbox.limits.meter import Sample
from agentflow.sandbox.process.child import Child, Watch
from agentflow.sandbox.process.worker import hint_channel
from agentflow.sandbox.process.zygote import Zygote


class Fickle:
    """A meter that measures nothing, or breaks."""

    interval_s = 0.01

    def __init__(self, *, breaks: bool) -> None:
        self.breaks = breaks

    def sample(self) -> Sample:
        """Measure."""
        if self.breaks:
            raise LookupError("no such number")
        return Sample(0.0, 1.0)

    def close(self) -> None:
        """Nothing is open."""


def child(zygote: Zygote, number: int, *, breaks: bool) -> Child:
    """Have a process watched that sleeps."""
    pid = subprocess.Popen(["sleep", "60"]).pid
    report, writing = os.pipe()
    os.close(writing)
    hints, hinting = hint_channel()
    os.close(hinting)
    made = Child(number, pid, os.pidfd_open(pid), report, hints, Fickle(breaks=breaks), 100.0, 9, 1.0, False, 0.0,
                 Watch(1.0, time.monotonic() + 60, None))  # fmt: skip
    zygote._children[number], zygote._by_handle[made.handle] = made, made
    zygote._poll.register(made.handle, select.POLLIN)
    return made


def test_child_that_cannot_be_watched_is_ended_and_no_other() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        zygote = Zygote(there, b"")
        broken, fine = child(zygote, 1, breaks=True), child(zygote, 2, breaks=False)
        zygote._judge_all()
        while broken.number in zygote._children:
            zygote._step()
        event = json.loads(here.recv(1 << 16))
        assert (event["event"], event["number"]) == ("died", 1)
        assert event["broken"] == "it cannot be watched: LookupError: no such number"
        assert list(zygote._children) == [2]
        assert not select.select([fine.handle], [], [], 0)[0]
        zygote._kill(fine)
        while zygote._children:
            zygote._step()
