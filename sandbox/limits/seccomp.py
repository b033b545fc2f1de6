"""A system-call filter, as a BPF program and as a profile for Docker: what it does not list does not exist.

`syscalls.txt` names the calls that an interpreter, its native extensions and the system's programs make. Any other
returns ENOSYS, as on a kernel that is older than it, and nothing is ever killed: a library that tries a call which it
can do without goes on. Not on the list are other ways out of a namespace, rarely used kernel code, memory that no
process maps, queues and segments that outlive a program, and what would let programs see or block each other, or the
host, through the read-only files that they share: whole-file locks, leases, watches, questions about the page cache.
Some calls are there for some arguments: no new namespaces, sockets of four families (AF_VSOCK reaches the hypervisor),
no words in a terminal's input, and nobody else's limits and turns of the CPU.
"""

import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentflow.errors import ConfigError

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 38  # ENOSYS
_ENOSYS = 38
_LOAD, _SKIP, _JUMP_EQUAL, _JUMP_ANY_BIT, _JUMP_FROM, _RETURN = 0x20, 0x05, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, (16, 24)  # offsets in struct seccomp_data, low words
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_TERMINAL_REQUESTS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_HOLDING_COMMANDS = (1024, 1026)  # F_SETLEASE, F_NOTIFY
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class _Test:
    """What the low word of an argument must be.

    Attributes:
        argument: Which one.
        mask: The bits that are looked at.
        values: What they may be; where `negated`, what they may not be.
        negated: Whether the values are those that are refused.
    """

    argument: int
    values: Sequence[int]
    mask: int = 0xFFFFFFFF
    negated: bool = False


_OWN = _Test(0, (0,))  # 0 is the caller itself: whose limits sink may not be the one that judges the rest
_BY_ARGUMENT: Mapping[str, Sequence[_Test]] = {
    "clone": (_Test(0, (0,), mask=_NEW_NAMESPACES),),
    "socket": (_Test(0, _FAMILIES),),
    "socketpair": (_Test(0, _FAMILIES),),
    "ioctl": (_Test(1, _TERMINAL_REQUESTS, negated=True),),
    "fcntl": (_Test(1, _HOLDING_COMMANDS, negated=True),),
    "prlimit64": (_OWN,),
    "sched_setparam": (_OWN,),
    "sched_setscheduler": (_OWN,),
    "sched_setattr": (_OWN,),
    "setpriority": (_OWN, _Test(1, (0,))),
}


@lru_cache(maxsize=4)
def _calls(machine: str) -> Mapping[str, tuple[str, int]]:
    """Return the mark and the number of each call that an architecture has."""
    if machine not in _ARCHITECTURES:
        raise ConfigError(f"There is no system-call filter for {machine}.", f"Known: {', '.join(_ARCHITECTURES)}.")
    column = 2 + list(_ARCHITECTURES).index(machine)
    lines = (Path(__file__).parent / "syscalls.txt").read_text(encoding="ascii").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {row[1]: (row[0], int(row[column])) for row in rows if row[column] != "-"}


def call_numbers(machine: str | None = None) -> Mapping[str, int]:
    """Return the numbers of system calls by name; none where the architecture is not known."""
    machine = machine or platform.machine()
    known = _calls(machine) if machine in _ARCHITECTURES else {}
    return {name: number for name, (_, number) in known.items()}


def bpf_filter(machine: str | None = None) -> bytes:
    """Return the filter as the array of `struct sock_filter` that seccomp takes.

    Args:
        machine: The architecture; None for this machine's.

    Raises:
        ConfigError: The call numbers of the architecture are not known.
    """
    machine = machine or platform.machine()
    leaves: dict[int, list[bytes]] = {}
    for name, (mark, number) in _calls(machine).items():
        if mark == "+":
            leaves[number] = [_step(_RETURN, _ALLOW)]
        elif mark == "?":
            leaves[number] = _by_argument(_BY_ARGUMENT[name])
    spans: list[tuple[int, list[bytes]]] = []
    refused = [_step(_RETURN, _REFUSE)]
    # Numbers of other kinds (x32, the future) lie above; each span holds from its number to the next.
    for number in range(max(leaves) + 2):
        leaf = leaves.get(number, refused)
        if not spans or spans[-1][1] != leaf:
            spans.append((number, leaf))
    head = [_step(_LOAD, _ARCH), _step(_JUMP_EQUAL, _ARCHITECTURES[machine], jump=(1, 0)), *refused]
    return b"".join([*head, _step(_LOAD, _NUMBER), *_tree(spans)])


def _tree(spans: Sequence[tuple[int, list[bytes]]]) -> list[bytes]:
    """Find a number's span by halving: the kernel tries every call once for each filter that it takes."""
    if len(spans) == 1:
        return spans[0][1]
    middle = len(spans) // 2
    below, above = _tree(spans[:middle]), _tree(spans[middle:])
    return [_step(_JUMP_FROM, spans[middle][0], jump=(0, 1)), _step(_SKIP, len(below)), *below, *above]


def _by_argument(tests: Sequence[_Test]) -> list[bytes]:
    """Allow a call where all tests hold."""
    program: list[bytes] = []
    for test in tests:
        program.append(_step(_LOAD, _ARGUMENTS[test.argument]))
        if test.mask != 0xFFFFFFFF:
            assert test.values == (0,), "bits that must not be set"
            program += [_step(_JUMP_ANY_BIT, test.mask, jump=(0, 1)), _step(_RETURN, _REFUSE)]
        elif test.negated:
            for value in test.values:
                program += [_step(_JUMP_EQUAL, value, jump=(0, 1)), _step(_RETURN, _REFUSE)]
        else:
            left = len(test.values)
            program += [_step(_JUMP_EQUAL, value, jump=(left - at, 0)) for at, value in enumerate(test.values)]
            program.append(_step(_RETURN, _REFUSE))
    return [*program, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, *, jump: tuple[int, int] = (0, 0)) -> bytes:
    """Return one instruction; `jump` says how many to skip where its test holds, and where it does not."""
    return struct.pack("=HBBI", code, *jump, value)


def docker_profile(machine: str | None = None) -> dict[str, Any]:
    """Return the same filter as Docker's `seccomp=` option takes it, as JSON; calls of other architectures kill.

    Engines before version 23 know no default but EPERM, so that the calls which are refused are named too. There a
    call whose argument is refused returns EPERM.

    Args:
        machine: The architecture; None for this machine's.

    Raises:
        ConfigError: The call numbers of the architecture are not known.
    """
    machine = machine or platform.machine()
    by_mark: dict[str, list[str]] = {"+": [], "?": [], "-": []}
    for name, (mark, _) in _calls(machine).items():
        by_mark[mark].append(name)
    rules = [
        {"names": by_mark["+"], "action": "SCMP_ACT_ALLOW", "args": []},
        {"names": by_mark["-"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS, "args": []},
        *(
            {"names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments}
            for name in by_mark["?"]
            for arguments in _arguments(_BY_ARGUMENT[name])
        ),
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": [f"SCMP_ARCH_{machine.upper()}"],
        "syscalls": rules,
    }


def _arguments(tests: Sequence[_Test]) -> Iterator[list[dict[str, Any]]]:
    """Yield the tests of rules that together allow what the tests do: each rule's own must all hold."""
    first, *others = tests
    for mask, value in _cubes(first):
        compared = {"index": first.argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
        for rest in _arguments(others) if others else [[]]:
            yield [compared, *rest]


def _cubes(test: _Test) -> Iterator[tuple[int, int]]:
    """Yield masks and values of which an allowed word meets one: libseccomp compares 64 bits, the kernel reads 32."""
    if not test.negated:
        yield from ((test.mask, value) for value in test.values)
        return
    prefixes = [(0, 0)]
    for bit in reversed(range(_WORD_BITS)):
        split = [(mask | 1 << bit, value | side << bit) for mask, value in prefixes for side in (0, 1)]
        holding = [(mask, value) for mask, value in split if any(word & mask == value for word in test.values)]
        yield from (cube for cube in split if cube not in holding)
        prefixes = holding
