"""The system-call filter in its two forms: what one of them refuses, the other refuses too."""

import json
import struct
from typing import Any

import pytest

from agentflow.errors import ConfigError
from agentflow.sandbox.limits.seccomp import _NUMBERS, _OWN_ONLY, bpf_filter, docker_profile

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
CALLS = [
    *(
        (name, arguments)
        for name in ("clone", "socket", "socketpair", "ioctl")
        for arguments in ((0, 0), (2, 1), (17, 8))
    ),
    *(("clone", (1 << bit, 0)) for bit in range(32)),
    ("clone", (0x10000000 | 17, 0)),
    *((name, (family, 1)) for name in ("socket", "socketpair") for family in (1, 2, 10, 16, 38, 40)),
    *(("ioctl", (0, request)) for request in (0x5401, 0x5412, 0x541C)),
    *(("fcntl", (3, command)) for command in (1, 6, 1024, 1026, 1030)),
    *((name, (pid, 7)) for name in _OWN_ONLY for pid in (0, 1, 2, 4096, 0xFFFFFFFF)),
    *(("setpriority", (which, who)) for which in (0, 1, 2) for who in (0, 1, 4096)),
    *((name, (0, 0)) for name in ("ptrace", "clone3", "mount", "bpf", "read", "memfd_create")),
]


def bpf_verdict(number: int, arguments: tuple[int, int], *, arch: int) -> int:
    """Interpret the program as the kernel would."""
    steps = list(struct.iter_unpack("=HBBI", bpf_filter("x86_64")))
    data = struct.pack("=IIQQQ", number, arch, 0, *arguments)
    at, value = 0, 0
    while True:
        code, holds, fails, operand = steps[at]
        at += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
            continue
        is_so = {0x15: value == operand, 0x45: bool(value & operand), 0x35: value >= operand}[code]
        at += holds if is_so else fails


def profile_verdict(name: str, arguments: tuple[int, int]) -> int:
    """Apply Docker's rules."""
    profile: dict[str, Any] = json.loads(json.dumps(docker_profile("x86_64")))
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    for rule in profile["syscalls"]:
        tests = [arguments[test["index"]] & test["value"] == test["valueTwo"] for test in rule["args"]]
        if name in rule["names"] and all(tests):
            return 0x00050000 | int(rule["errnoRet"])
    return ALLOW


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_profile_and_program_agree(name: str, arguments: tuple[int, int]) -> None:
    arch, numbers = _NUMBERS["x86_64"]
    number = {**numbers, "read": 0}[name]
    assert profile_verdict(name, arguments) == bpf_verdict(number, arguments, arch=arch)


def test_agreement_is_about_something() -> None:
    assert profile_verdict("socket", (40, 1)) == EPERM
    assert profile_verdict("socket", (2, 1)) == ALLOW
    assert profile_verdict("clone", (0x10000000, 0)) == EPERM
    assert profile_verdict("fcntl", (3, 1024)) == profile_verdict("fcntl", (3, 1026)) == EPERM
    assert profile_verdict("fcntl", (3, 6)) == ALLOW
    assert profile_verdict("prlimit64", (1, 0)) == EPERM
    assert profile_verdict("setpriority", (2, 0)) == profile_verdict("setpriority", (0, 1)) == EPERM
    assert profile_verdict("setpriority", (0, 0)) == ALLOW
    assert profile_verdict("clone3", (0, 0)) == ENOSYS


@pytest.mark.parametrize("machine", _NUMBERS)
def test_profile_names_the_architecture(machine: str) -> None:
    assert docker_profile(machine)["architectures"] == [f"SCMP_ARCH_{machine.upper()}"]


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="no system-call filter for pdp11"):
        docker_profile("pdp11")
