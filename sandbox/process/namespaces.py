"""The calls of Linux that Python has no function for: namespaces, mounts, capabilities, a fork into new namespaces."""

import ctypes
import fcntl
import os
import platform
import signal
import socket
import struct

NEW_MOUNTS, NEW_HOST_NAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
OF_A_PROGRAM = NEW_USER | NEW_MOUNTS | NEW_PROCESSES | NEW_HOST_NAME
OF_A_ZYGOTE = NEW_MOUNTS | NEW_NETWORK | NEW_IPC
READ_ONLY, NO_SETUID, NO_DEVICES, NO_PROGRAMS = 0x1, 0x2, 0x4, 0x8
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x40000, 2
_AT_CWD, _AT_RECURSIVE = -100, 0x8000
_DIE_WITH_PARENT, _DUMPABLE, _FILTER, _DROP_BOUND, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 4, 22, 24, 38, 47
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 40
_COLLAPSE, _LARGE_BYTES = 25, 1 << 21
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x41
# Numbers of clone, mount_setattr and pivot_root.
_NUMBERS = {"x86_64": (56, 442, 155), "aarch64": (220, 442, 41)}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_forking = ctypes.PyDLL(None, use_errno=True)  # it keeps the interpreter's lock, which the child then holds as well
_forking.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)  # each execution makes some fifty of these calls


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


class Filter:
    """A system-call filter, ready for the kernel.

    Args:
        steps: Its instructions.

    Attributes:
        address: Where the kernel reads it.
    """

    def __init__(self, steps: bytes) -> None:
        self._steps = ctypes.create_string_buffer(steps, len(steps))
        self._program = _Program(len(steps) // 8, ctypes.addressof(self._steps))
        self.address = ctypes.addressof(self._program)


def _check(what: str, result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _number(index: int) -> int:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(f"The numbers of system calls are known for {', '.join(_NUMBERS)}, not for {machine}.")
    return _NUMBERS[machine][index]


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check("unshare", _libc.unshare(flags))


def clone(flags: int) -> int:
    """Fork into new namespaces: 0 in the child, its number in the parent; see `fork` for what Python is spared."""
    arguments = [ctypes.c_long(value) for value in (_number(0), flags | signal.SIGCHLD, 0, 0, 0, 0)]
    pid = int(_forking.syscall(*arguments))
    if pid < 0:
        raise OSError("clone: the kernel makes no namespaces here (see `agentflow sandbox doctor`)")
    return pid


def fork() -> int:
    """Fork as the C library does: 0 in the child, its number in the parent.

    For a process of one thread, which holds no lock, there is nothing that Python would have to mend in the child, and
    its hooks write to every tenth page of a small interpreter, each of which has to be copied then.
    """
    pid = int(_forking.fork())
    _check("fork", pid)
    return pid


def map_user(inside: int, *, user: int, group: int) -> None:
    """Be called `inside` in the user namespace that this process has just entered, and nobody else."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {user} 1"),
        ("gid_map", f"{inside} {group} 1"),
    ):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def mount(kind: str, target: str, *, flags: int = 0, options: str = "") -> None:
    """Mount a file system that has no source."""
    words = (kind.encode(), target.encode(), kind.encode())
    _check(f"mount {kind} on {target}", _libc.mount(*words, ctypes.c_ulong(flags), options.encode()))


def bind(source: str, target: str) -> None:
    """Show a file or folder of the old tree, with what is mounted below, at a second place."""
    flags = ctypes.c_ulong(_BIND | _RECURSIVE)
    _check(f"bind {source}", _libc.mount(source.encode(), target.encode(), None, flags, None))


def make_private() -> None:
    """Keep what this process mounts to itself."""
    _check("mount / private", _libc.mount(None, b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None))


def seal(root: str) -> None:
    """Make a tree of mounts read-only, and its set-user bits idle."""
    attributes = struct.pack("=QQQQ", READ_ONLY | NO_SETUID, 0, 0, 0)
    number, size = _number(1), ctypes.c_size_t(len(attributes))
    result = _libc.syscall(ctypes.c_long(number), _AT_CWD, root.encode(), _AT_RECURSIVE, attributes, size)
    _check("mount_setattr", result)


def pivot(root: str) -> None:
    """Make a mount the root, and let go of the old one."""
    os.chdir(root)
    _check("pivot_root", _libc.syscall(ctypes.c_long(_number(2)), b".", b"."))
    _check("umount", _libc.umount2(b".", _DETACH))
    os.chdir("/")


def _control(option: int, *values: int) -> int:
    return int(_libc.prctl(option, *values, *[0] * (4 - len(values))))


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _check("prctl", _control(_DIE_WITH_PARENT, signal.SIGKILL))


def set_inspectable(inspectable: bool) -> None:
    """Let processes of the same user look into this one, or not."""
    _check("prctl", _control(_DUMPABLE, int(inspectable)))


def drop_capabilities() -> None:
    """Give up every capability, and every way to gain one, for good."""
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_DROP_BOUND, capability, 0, 0, 0)  # numbers that this kernel does not know are refused
    _control(_AMBIENT, 4)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _check("capset", _libc.capset(header, bytes(24)))
    _check("prctl", _control(_NO_NEW_PRIVILEGES, 1))


def install_filter(prepared: Filter) -> None:
    """Put a system-call filter over this process and all that it will start."""
    _check("seccomp", _control(_FILTER, 2, prepared.address))


def take_large_pages() -> None:
    """Put this process's memory into large pages, of which a fork copies one entry where it copied 512.

    A kernel that has none refuses, which costs nothing but time.
    """
    with open("/proc/self/maps") as file:
        areas = [line.split() for line in file]
    for place, rights, _, _, inode, *_ in areas:
        start, end = (int(edge, 16) for edge in place.split("-"))
        first, last = -(-start // _LARGE_BYTES) * _LARGE_BYTES, end // _LARGE_BYTES * _LARGE_BYTES
        if (rights, inode) == ("rw-p", "0") and first < last:
            _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _COLLAPSE)


def loopback_up() -> None:
    """Switch on the loopback device of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        flags = struct.unpack("16sh", fcntl.ioctl(device, _GET_FLAGS, struct.pack("16sh", b"lo", 0)))[1]
        fcntl.ioctl(device, _SET_FLAGS, struct.pack("16sh", b"lo", flags | _UP))
