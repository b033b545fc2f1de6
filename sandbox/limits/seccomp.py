"""A system-call filter, as a BPF program and as a profile for Docker: it refuses what namespaces do not cover.

The list names what is denied, not what is allowed: an interpreter with native extensions uses too many calls to
enumerate, and the namespaces carry the containment. Denied are other ways out of a namespace, calls that reach rarely
used kernel code, memory that no process maps, sockets that no network namespace covers (AF_VSOCK reaches the
hypervisor), and what would let programs see or block each other, or the host, through the read-only files that they
share: whole-file locks, leases and watches.
"""

import platform
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow.errors import ConfigError

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _JUMP_ABOVE, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # offsets in struct seccomp_data, low words
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag
_DENIED_FAMILIES = (38, 40)  # AF_ALG, AF_VSOCK
_TERMINAL_REQUESTS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_HOLDING_COMMANDS = (1024, 1026)  # F_SETLEASE, F_NOTIFY
_X32_BIT = 0x40000000

_NUMBERS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "clone": 56,
            "clone3": 435,
            "socket": 41,
            "socketpair": 53,
            "ioctl": 16,
            "fcntl": 72,
            "flock": 73,
            "shmget": 29,
            "semget": 64,
            "msgget": 68,
            "mq_open": 240,
            "ptrace": 101,
            "syslog": 103,
            "personality": 135,
            "modify_ldt": 154,
            "setpriority": 141,
            "sched_setparam": 142,
            "sched_setscheduler": 144,
            "pivot_root": 155,
            "chroot": 161,
            "mount": 165,
            "umount2": 166,
            "swapon": 167,
            "swapoff": 168,
            "reboot": 169,
            "iopl": 172,
            "ioperm": 173,
            "init_module": 175,
            "delete_module": 176,
            "quotactl": 179,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "inotify_init": 253,
            "inotify_add_watch": 254,
            "inotify_init1": 294,
            "fanotify_init": 300,
            "unshare": 272,
            "perf_event_open": 298,
            "name_to_handle_at": 303,
            "open_by_handle_at": 304,
            "setns": 308,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "prlimit64": 302,
            "kcmp": 312,
            "finit_module": 313,
            "sched_setattr": 314,
            "memfd_create": 319,
            "kexec_file_load": 320,
            "bpf": 321,
            "userfaultfd": 323,
            "io_uring_setup": 425,
            "io_uring_enter": 426,
            "io_uring_register": 427,
            "open_tree": 428,
            "move_mount": 429,
            "fsopen": 430,
            "fsconfig": 431,
            "fsmount": 432,
            "fspick": 433,
            "pidfd_getfd": 438,
            "mount_setattr": 442,
            "memfd_secret": 447,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "clone": 220,
            "clone3": 435,
            "socket": 198,
            "socketpair": 199,
            "ioctl": 29,
            "fcntl": 25,
            "flock": 32,
            "inotify_init1": 26,
            "inotify_add_watch": 27,
            "fanotify_init": 262,
            "ptrace": 117,
            "msgget": 186,
            "mq_open": 180,
            "semget": 190,
            "shmget": 194,
            "syslog": 116,
            "personality": 92,
            "setpriority": 140,
            "sched_setparam": 118,
            "sched_setscheduler": 119,
            "pivot_root": 41,
            "chroot": 51,
            "mount": 40,
            "umount2": 39,
            "swapon": 224,
            "swapoff": 225,
            "reboot": 142,
            "init_module": 105,
            "delete_module": 106,
            "quotactl": 60,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "unshare": 97,
            "perf_event_open": 241,
            "name_to_handle_at": 264,
            "open_by_handle_at": 265,
            "setns": 268,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "prlimit64": 261,
            "kcmp": 272,
            "finit_module": 273,
            "sched_setattr": 274,
            "memfd_create": 279,
            "kexec_file_load": 294,
            "bpf": 280,
            "userfaultfd": 282,
            "io_uring_setup": 425,
            "io_uring_enter": 426,
            "io_uring_register": 427,
            "open_tree": 428,
            "move_mount": 429,
            "fsopen": 430,
            "fsconfig": 431,
            "fsmount": 432,
            "fspick": 433,
            "pidfd_getfd": 438,
            "mount_setattr": 442,
            "memfd_secret": 447,
        },
    ),
}
# These arguments are 0 for the caller itself. A process of the same user may otherwise change anybody's limits and
# turns: with them falls, or sleeps, the one that judges the rest.
_OWN_ONLY: Mapping[str, Sequence[int]] = {
    "prlimit64": (0,),
    "sched_setparam": (0,),
    "sched_setscheduler": (0,),
    "sched_setattr": (0,),
    "setpriority": (0, 1),
}
_CONDITIONAL = ("clone", "clone3", "socket", "socketpair", "ioctl", "fcntl", *_OWN_ONLY)


def call_numbers(machine: str | None = None) -> Mapping[str, int]:
    """Return the numbers of the calls that the filter knows, by name; none where the architecture is not known."""
    return _NUMBERS.get(machine or platform.machine(), (0, {}))[1]


def bpf_filter(machine: str | None = None) -> bytes:
    """Return the filter as the array of `struct sock_filter` that seccomp takes.

    Args:
        machine: The architecture; None for this machine's.

    Raises:
        ConfigError: The call numbers of the architecture are not known.
    """
    machine = machine or platform.machine()
    arch, numbers = _numbers(machine)
    program = [_step(_LOAD, _ARCH), _step(_JUMP_EQUAL, arch, jump=(1, 0)), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    if machine == "x86_64":
        # The x32 numbers are a second way to every call.
        program += [_step(_JUMP_ABOVE, _X32_BIT, jump=(0, 1)), _step(_RETURN, _ERRNO | _ENOSYS)]
    # All denied calls share one refusal: the kernel translates and tries out the whole filter at each start.
    denied = [number for name, number in numbers.items() if name not in _CONDITIONAL]
    for left, number in zip(reversed(range(len(denied))), denied, strict=True):
        program.append(_step(_JUMP_EQUAL, number, jump=(left, 0 if left else 1)))
    program.append(_step(_RETURN, _ERRNO | _EPERM))
    # clone3 hides its flags behind a pointer; without it the C library falls back to clone.
    program += [_step(_JUMP_EQUAL, numbers["clone3"], jump=(0, 1)), _step(_RETURN, _ERRNO | _ENOSYS)]
    program += _on_argument(numbers["clone"], _FIRST_ARGUMENT, [(_JUMP_ANY_BIT, _NEW_NAMESPACES)])
    for name in ("socket", "socketpair"):
        program += _on_argument(numbers[name], _FIRST_ARGUMENT, [(_JUMP_EQUAL, family) for family in _DENIED_FAMILIES])
    terminal = [(_JUMP_EQUAL, request) for request in _TERMINAL_REQUESTS]
    program += _on_argument(numbers["ioctl"], _SECOND_ARGUMENT, terminal)
    holding = [(_JUMP_EQUAL, command) for command in _HOLDING_COMMANDS]
    program += _on_argument(numbers["fcntl"], _SECOND_ARGUMENT, holding)
    for name, arguments in _OWN_ONLY.items():
        for argument in arguments:
            program += _on_argument(numbers[name], (_FIRST_ARGUMENT, _SECOND_ARGUMENT)[argument], [(_JUMP_ABOVE, 1)])
    program.append(_step(_RETURN, _ALLOW))
    return b"".join(program)


def docker_profile(machine: str | None = None) -> dict[str, Any]:
    """Return the same filter as Docker's `seccomp=` option takes it, as JSON; calls of other architectures kill.

    Args:
        machine: The architecture; None for this machine's.

    Raises:
        ConfigError: The call numbers of the architecture are not known.
    """
    machine = machine or platform.machine()
    _, numbers = _numbers(machine)
    rules = [_rule([name for name in numbers if name not in _CONDITIONAL]), _rule(["clone3"], error=_ENOSYS)]
    bits = [1 << bit for bit in range(32) if _NEW_NAMESPACES >> bit & 1]
    rules += [_rule(["clone"], argument=0, value=bit, mask=bit) for bit in bits]
    rules += [_rule(["socket", "socketpair"], argument=0, value=family) for family in _DENIED_FAMILIES]
    rules += [_rule(["ioctl"], argument=1, value=request) for request in _TERMINAL_REQUESTS]
    rules += [_rule(["fcntl"], argument=1, value=command) for command in _HOLDING_COMMANDS]
    words = [1 << bit for bit in range(32)]
    for name, arguments in _OWN_ONLY.items():
        rules += [_rule([name], argument=argument, value=bit, mask=bit) for argument in arguments for bit in words]
    architecture = f"SCMP_ARCH_{machine.upper()}"
    return {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture], "syscalls": rules}


def _numbers(machine: str) -> tuple[int, Mapping[str, int]]:
    if machine not in _NUMBERS:
        raise ConfigError(f"There is no system-call filter for {machine}.", f"Known: {', '.join(_NUMBERS)}.")
    return _NUMBERS[machine]


def _rule(
    names: list[str], *, error: int = _EPERM, argument: int | None = None, value: int = 0, mask: int = 0xFFFFFFFF
) -> dict[str, Any]:
    """Refuse calls, where an argument is given only if its masked low word has the value."""
    test = {"index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    tests = [] if argument is None else [test]
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": tests}


def _on_argument(number: int, offset: int, tests: list[tuple[int, int]]) -> list[bytes]:
    """Refuse one call where a test of an argument's low word holds; leave the call's number loaded again."""
    body = [_step(_LOAD, offset)]
    for test, value in tests:
        body += [_step(test, value, jump=(0, 1)), _step(_RETURN, _ERRNO | _EPERM)]
    body.append(_step(_LOAD, _NUMBER))
    return [_step(_JUMP_EQUAL, number, jump=(0, len(body))), *body]


def _step(code: int, value: int, *, jump: tuple[int, int] = (0, 0)) -> bytes:
    """Return one instruction; `jump` says how many to skip where its test holds, and where it does not."""
    return struct.pack("=HBBI", code, *jump, value)
