"""The system-call filter in its two forms: what one of them refuses, the other refuses too."""

import json
import struct
from typing import Any

import pytest

from agentflow.errors import ConfigError
from agentflow.sandbox.limits.seccomp import _ARCHITECTURES, _BY_ARGUMENT, bpf_filter, call_numbers, docker_profile

ALLOW, ENOSYS = 0x7FFF0000, 0x00050026
ARCH = _ARCHITECTURES["x86_64"]
NUMBERS = call_numbers("x86_64")
HIGH = 1 << 32  # the kernel reads 32 bits of these arguments
FAMILIES = (1, 2, 3, 10, 16, 17, 38, 40)
CALLS = [
    *((name, arguments) for name in NUMBERS for arguments in ((0, 0), (2, 1), (17, 8))),
    *(("clone", (1 << bit, 0)) for bit in range(40)),
    ("clone", (0x10000000 | 17, 0)),
    *((name, (family | high, 1)) for name in ("socket", "socketpair") for family in FAMILIES for high in (0, HIGH)),
    *(("ioctl", (0, request | high)) for request in (0x5401, 0x5412, 0x541C, 0x541D, 0) for high in (0, HIGH)),
    *(("fcntl", (3, command | high)) for command in (1, 6, 1024, 1025, 1026, 1030) for high in (0, HIGH)),
    *((name, (pid, 7)) for name in _BY_ARGUMENT for pid in (0, 1, 2, 4096, 0xFFFFFFFF, HIGH)),
    *(("setpriority", (which, who)) for which in (0, 1, 2, HIGH) for who in (0, 1, 4096)),
]


def bpf_verdict(number: int, arguments: tuple[int, int], *, arch: int = ARCH) -> int:
    """Interpret the program as the kernel would."""
    steps = list(struct.iter_unpack("=HBBI", PROGRAM))
    data = struct.pack("=IIQQQ", number, arch, 0, *arguments)
    at, value = 0, 0
    while True:
        code, holds, fails, operand = steps[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x05:
            at += operand
        else:
            is_so = {0x15: value == operand, 0x45: bool(value & operand), 0x35: value >= operand}[code]
            at += holds if is_so else fails


PROGRAM = bpf_filter("x86_64")
PROFILE: dict[str, Any] = json.loads(json.dumps(docker_profile("x86_64")))


def profile_verdict(name: str, arguments: tuple[int, int]) -> int:
    """Apply Docker's rules."""
    for rule in PROFILE["syscalls"]:
        tests = [arguments[test["index"]] & test["value"] == test["valueTwo"] for test in rule["args"]]
        if name in rule["names"] and all(tests):
            return ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else 0x00050000 | int(rule["errnoRet"])
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    return 0x00050000 | int(PROFILE["defaultErrnoRet"])


def test_profile_and_program_agree_on_every_call() -> None:
    differing = [call for call in CALLS if profile_verdict(*call) != bpf_verdict(NUMBERS[call[0]], call[1])]
    assert differing == []


def test_agreement_is_about_something() -> None:
    allowed = [name for name in NUMBERS if profile_verdict(name, (0, 0)) == ALLOW]
    assert 230 < len(allowed) < len(NUMBERS) - 100
    for name in ("read", "openat", "mmap", "execve", "futex", "getrandom", "clone"):
        assert name in allowed
    for name in ("ptrace", "mount", "bpf", "unshare", "setns", "keyctl", "io_uring_setup", "memfd_create", "flock"):
        assert profile_verdict(name, (0, 0)) == ENOSYS
    for name in ("inotify_init1", "shmget", "mq_open", "perf_event_open", "userfaultfd", "clone3", "mincore"):
        assert profile_verdict(name, (0, 0)) == ENOSYS
    assert profile_verdict("socket", (40, 1)) == profile_verdict("socket", (40 | HIGH, 1)) == ENOSYS
    assert profile_verdict("socket", (2, 1)) == ALLOW
    assert profile_verdict("clone", (0x10000000, 0)) == ENOSYS
    assert profile_verdict("prlimit64", (1, 0)) == ENOSYS
    assert profile_verdict("setpriority", (2, 0)) == profile_verdict("setpriority", (0, 1)) == ENOSYS
    assert profile_verdict("setpriority", (0, 0)) == ALLOW
    assert profile_verdict("fcntl", (3, 1024)) == profile_verdict("ioctl", (0, 0x5412)) == ENOSYS


def test_what_is_not_known_does_not_exist_and_kills_nobody() -> None:
    unknown = set(range(600)) - set(NUMBERS.values())
    assert {bpf_verdict(number, (0, 0)) for number in (*unknown, 0x40000000, 0x40000001, 0xFFFFFFFF)} == {ENOSYS}
    assert bpf_verdict(0, (0, 0), arch=0x40000003) == ENOSYS
    ends = {operand for code, _, _, operand in struct.iter_unpack("=HBBI", PROGRAM) if code == 0x06}
    assert ends == {ALLOW, ENOSYS}


@pytest.mark.parametrize("machine", _ARCHITECTURES)
def test_profile_names_the_architecture(machine: str) -> None:
    assert docker_profile(machine)["architectures"] == [f"SCMP_ARCH_{machine.upper()}"]
    assert len(bpf_filter(machine)) % 8 == 0


def test_unknown_architecture_is_refused() -> None:
    assert call_numbers("pdp11") == {}
    with pytest.raises(ConfigError, match="no system-call filter for pdp11"):
        docker_profile("pdp11")
