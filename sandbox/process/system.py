"""The read-only system that programs see: this interpreter, named packages, the system's programs, nothing else."""

import glob
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentflow.sandbox.process import namespaces

INSIDE = 65_534
"""The user's and group's number inside; it owns nothing there."""
WORK = "/work"
_OWN = (WORK, "/tmp", "/dev", "/proc")  # noqa: S108
_ELSEWHERE = "/python"
_BUILT_AT = "/sys"  # nothing below it is shown, so that nothing is hidden while the new root stands on it
_INSTALLED = ("site-packages", "dist-packages")
_TOLD = ("METADATA", "entry_points.txt", "top_level.txt")  # what a package may ask of itself
_FOLDERS = ("/bin", "/lib", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/shm", WORK),  # noqa: S108
    ("/tmp", "work"),  # noqa: S108
)


def shown_at(path: str) -> str:
    """Return where a host's file is seen inside: in its own place, unless the sandbox has something else there."""
    collides = any(Path(path).is_relative_to(folder) for folder in _OWN)
    return _ELSEWHERE + path if collides else path


def enter(user: int | None, packages: Sequence[str]) -> None:
    """Leave the host's files for good.

    Args:
        user: Whom to become, where this process is root; None where it is not.
        packages: What stays of the installed packages, see `packages.shown_paths`.

    Raises:
        OSError: The kernel does not allow it.
    """
    # Queues and shared segments are those of all programs of a zygote: the system-call filter denies them altogether.
    # So is the network until a program has used it (`zygote.Network`): a new one for each costs a third more.
    namespaces.unshare(namespaces.OF_A_ZYGOTE | (0 if user else namespaces.NEW_USER))
    if user is None:
        _become_nobody()
    namespaces.loopback_up()
    namespaces.make_private()
    namespaces.mount(
        "tmpfs", _BUILT_AT, flags=namespaces.NO_SETUID | namespaces.NO_DEVICES, options="size=8m,mode=0755"
    )
    _build(_BUILT_AT, packages)
    namespaces.seal(_BUILT_AT)
    # The executions' own /proc covers this one, which the kernel wants to see before it grants theirs.
    namespaces.bind("/proc", f"{_BUILT_AT}/proc")
    namespaces.pivot(_BUILT_AT)
    _look_elsewhere()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    namespaces.drop_capabilities()
    namespaces.set_inspectable(True)


def _become_nobody() -> None:
    # Read before: the new namespace does not know them until they are mapped.
    user, group = _OUTSIDE
    namespaces.map_user(INSIDE, user=user, group=group)


_OUTSIDE = (os.getuid(), os.getgid())


def _build(root: str, packages: Sequence[str]) -> None:
    for folder in ("/proc", "/dev", WORK):
        os.makedirs(root + folder)
    bound: list[str] = []
    for path in (*_FOLDERS, *_FILES, *_interpreter()):
        if os.path.lexists(path) and not any(Path(path).is_relative_to(done) for done in bound):
            _show(path, root + shown_at(path))
            bound.append(path)
    for device in _DEVICES:
        _show(f"/dev/{device}", f"{root}/dev/{device}")
    for name, target in _LINKS:
        os.symlink(target, root + name)
    _cover_packages(root, bound)
    for path in packages:
        if path.endswith(".dist-info"):
            _tell(path, root + shown_at(path))
        else:
            _show(path, root + shown_at(path))


def _cover_packages(root: str, bound: Sequence[str]) -> None:
    """Put an empty folder over each folder of installed packages that lies in what is shown."""
    patterns = [f"{folder}/{below}{name}" for folder in bound for below in ("", "python3*/") for name in _INSTALLED]
    for path in {os.path.realpath(found) for pattern in patterns for found in glob.glob(pattern)}:
        if os.path.isdir(root + shown_at(path)):
            namespaces.mount("tmpfs", root + shown_at(path), options="size=8m,mode=0755")


def _tell(path: str, target: str) -> None:
    """Copy what a package says of itself: a mount for each would make every execution slower."""
    os.makedirs(target)
    for name in _TOLD:
        if os.path.isfile(f"{path}/{name}"):
            Path(target, name).write_bytes(Path(path, name).read_bytes())


def _show(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target)
    else:
        Path(target).touch()
    namespaces.bind(path, target)


def _look_elsewhere() -> None:
    """Make the import system look where things are now."""
    sys.path[:] = map(shown_at, sys.path)
    sys.executable = shown_at(sys.executable)
    sys.prefix, sys.base_prefix, sys.exec_prefix = map(shown_at, (sys.prefix, sys.base_prefix, sys.exec_prefix))
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__[:] = map(shown_at, module.__path__)
    sys.path_importer_cache.clear()


def _interpreter() -> Iterator[str]:
    """Yield what this interpreter is made of, without installed packages; folders before what stands in them."""
    prefixes = (sys.prefix, sys.base_prefix)
    folders = {path for path in sys.path if any(Path(path).is_relative_to(prefix) for prefix in prefixes)}
    yield from sorted(path for path in folders if not set(Path(path).parts) & set(_INSTALLED))
    library = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if all(library):
        yield os.path.join(*library)
    yield f"{sys.prefix}/pyvenv.cfg"
    executable = sys.executable
    while os.path.islink(executable):
        yield executable
        executable = os.path.normpath(os.path.join(os.path.dirname(executable), os.readlink(executable)))
    yield executable
