"""What an attack is, and what its judge may look at.

A judge believes nothing that the program says, except a secret that the program can only know from outside. It looks
at what the host saw: the program's processes in the host's /proc while they ran, what reached the bait, the result,
the time to return and who was left alive.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentflow.sandbox.base import Limits, Result

LIMITS = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=96, disk_mb=8, output_kb=16, max_processes=16)
GROUPS = ("resources", "files", "processes", "network", "kernel", "identity", "persistence", "protocol")
_STOPPED = ("cpu_timeout", "wall_timeout", "memory", "output_limit", "pids", "disk")
Outcome: TypeAlias = Literal["contained", "escaped", "not applicable"]


class NotApplicable(Exception):
    """Raised by a judge that has nothing to judge by; the text says why."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A descriptor of the program, as the host sees it.

    Attributes:
        link: What it is: a path as the program sees it, `socket:[...]`, `anon_inode:...`.
        writable: Whether it is open for writing.
        mode: The mode of the file; 0 where it cannot be looked at.
        number: Its device and inode.
        size_mb: Its length in megabytes.
        stored_mb: What it takes, in megabytes.
        family: The address family of a socket; 0 for all else, None where it cannot be looked at.
    """

    link: str
    writable: bool = False
    mode: int = 0
    number: tuple[int, int] = (0, 0)
    size_mb: float = 0.0
    stored_mb: float = 0.0
    family: int | None = 0


@dataclass(frozen=True, slots=True)
class Sighting:
    """One process of the program, as the host saw it when it asked to be looked at.

    Attributes:
        status: /proc/PID/status by name.
        limits: The soft limits of /proc/PID/limits by name.
        namespaces: The identity of each namespace by kind.
        mounts: /proc/PID/mountinfo.
        files: Its open files.
        root: What its root folder is, as the host sees it.
        personality: Its execution domain; None where it cannot be read.
        group: Its process group.
        session: Its session.
        oom_score: What was added to its score for being killed when memory is short.
        niceness: Its niceness.
        policy: Its scheduling policy; 0 is the ordinary one.
        inodes: Files and folders of its work space.
        heard: What it said to the host where it listened; None if nobody answers there.
    """

    status: Mapping[str, str]
    limits: Mapping[str, str]
    namespaces: Mapping[str, str]
    mounts: str
    files: tuple[OpenFile, ...]
    root: str
    personality: int | None
    group: int
    session: int
    oom_score: int
    niceness: int
    policy: int
    inodes: int
    heard: bytes | None


@dataclass(slots=True)
class Seen:
    """What the host saw of a program while it ran.

    Attributes:
        sightings: Who asked to be looked at, by the name that it gave itself.
        num_processes: The most processes and threads at once.
        memory_mb: The most resident memory at once, in megabytes.
        cpu_s: CPU seconds of all its processes.
    """

    sightings: dict[str, Sighting] = field(default_factory=dict)
    num_processes: int = 0
    memory_mb: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a judge may look at.

    Attributes:
        results: The result of the program and of those that followed it.
        seen: What the host saw meanwhile.
        secrets: What only the host knows; the second is what the first of two programs left for the other.
        received: What reached the host's sockets.
        wounds: What happened to the host's own processes.
        planted: Files that appeared on the host.
        host: The host's own process, seen likewise.
        elapsed_s: How long the first program took to return.
        limits: What it was allowed.
        mark: The word by which its processes are known.
    """

    results: tuple[Result, ...]
    seen: Seen
    secrets: tuple[str, ...]
    received: bytes
    wounds: tuple[str, ...]
    planted: tuple[str, ...]
    host: Sighting
    elapsed_s: float
    limits: Limits
    mark: str

    @property
    def result(self) -> Result:
        """The result of the first program."""
        return self.results[0]

    def sighting(self, name: str = "") -> Sighting:
        """Return the process that asked to be looked at under a name.

        Raises:
            NotApplicable: Nobody did.
        """
        if name not in self.seen.sightings:
            end = self.result.stderr.text.strip().splitlines()[-1:]
            raise NotApplicable(f"the host did not see the program ({self.result.status}; {' '.join(end)[:120]})")
        return self.seen.sightings[name]


Judge: TypeAlias = Callable[[Evidence], str]
"""Says how the attack escaped; empty if it is contained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A program that tries to get out.

    Attributes:
        name: `group/what`.
        code: The program; `prelude.txt` stands before it, or `prelude.sh`.
        judge: Who decides.
        language: `python` or `shell`.
        limits: Limits that differ from `LIMITS`.
        then: A program that runs next in the same sandbox, to find what the first has left.
        files: Files of the work space.
        stdin: What it reads.
        finishes: Whether it must reach its end for the verdict to count.
        machines: The architectures that it is for; empty for all.
        needs: What a backend must enforce for the attack to mean anything there; see `Result.enforced`.
    """

    name: str
    code: str
    judge: Judge
    language: Literal["python", "shell"] = "python"
    limits: Mapping[str, Any] = field(default_factory=dict)
    then: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    finishes: bool = True
    machines: Collection[str] = ()
    needs: str = ""

    @property
    def group(self) -> str:
        """The first part of its name."""
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge found.

    Attributes:
        attack: Which attack.
        outcome: `contained`, `escaped` or `not applicable`.
        reason: Why, if it is not contained.
    """

    attack: Attack
    outcome: Outcome
    reason: str = ""


def judge(attack: Attack, evidence: Evidence) -> Verdict:
    """Decide on an attack; that it left processes or broke the sandbox counts against every one."""
    if attack.needs and attack.needs not in evidence.result.enforced:
        return Verdict(attack, "not applicable", f"this sandbox does not promise {attack.needs!r}")
    try:
        reason = _common(evidence) or attack.judge(evidence)
    except NotApplicable as none:
        if not attack.finishes and evidence.result.status in _STOPPED:
            return Verdict(attack, "contained")
        return Verdict(attack, "not applicable", str(none))
    if reason:
        return Verdict(attack, "escaped", reason)
    if attack.finishes and f"{evidence.mark} done" not in evidence.result.stdout.text:
        said = (evidence.result.stderr.text or evidence.result.detail).strip()[-160:]
        return Verdict(
            attack, "not applicable", f"the program did not come to its end: {evidence.result.status} {said}"
        )
    return Verdict(attack, "contained")


def _common(evidence: Evidence) -> str:
    broken = next((result for result in evidence.results if result.status == "infra_error"), None)
    if broken is not None:
        return f"it broke the sandbox, whose failures nobody is blamed for: {broken.detail[:160]}"
    return "; ".join(evidence.wounds)
