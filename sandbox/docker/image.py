"""The image of the Docker backend, made of this machine's own Python: nothing is fetched from a registry."""

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from agentflow.errors import ConfigError
from agentflow.sandbox.base import SandboxUnavailable

DEFAULT_IMAGE = "agentflow-sandbox:latest"
PYTHON = "/usr/local/bin/python3"
_COMMANDS = """
awk base64 basename cat cp cut date dirname echo env expr false find grep head ls mkdir mv printf pwd rm rmdir sed seq
sh sleep sort stat tail tee test timeout touch tr true uniq wc xargs
""".split()
_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages"}
    | {"__pycache__"}
)
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
_LOADER = re.compile(r"^\s*(/\S*/ld-\S+) \(0x", re.MULTILINE)


def write_image(file: BinaryIO, packages: Sequence[str] = ()) -> None:
    """Write the tarball that `docker import` takes: this Python, what it links to, a shell and small commands.

    Args:
        file: Where to.
        packages: Installed distributions to put in, with neither data outside their folders nor what they depend on.

    Raises:
        ConfigError: A distribution is not installed.
        SandboxUnavailable: There is no `ldd`, which finds the libraries.
    """
    if shutil.which("ldd") is None:
        raise SandboxUnavailable("There is no ldd on the PATH.", "Build the image on a Linux machine with glibc.")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = PurePosixPath("/usr/local/lib", version)
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    content: dict[str, Path] = {f"/usr/local/bin/{version}": Path(executable)}
    content |= {str(library / name): path for name, path in _tree(Path(sysconfig.get_path("stdlib")))}
    content |= {str(library / name): path for name, path in _tree(Path(sysconfig.get_path("platstdlib")))}
    for name in packages:
        content |= {str(library / "site-packages" / inner): path for inner, path in _files_of(name)}
    content |= {f"/usr/bin/{name}": Path(found) for name in _COMMANDS if (found := shutil.which(name))}
    content |= _linked(content.values())
    with tarfile.open(fileobj=file, mode="w") as archive:
        for link, target in (("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/tmp", "work"), (PYTHON, version)):  # noqa: S108
            _add_link(archive, link, target)
        _add_link(archive, str(library / "dist-packages"), "site-packages")  # where Debian's Python looks
        for path in sorted(content):
            archive.add(content[path].resolve(), path.lstrip("/"), recursive=False, filter=_owned_by_nobody)


def _tree(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of a standard library, without its tests and what needs a screen."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        for name in names:
            path = Path(parent, name)
            if path.is_file():
                yield str(path.relative_to(folder)), path


def _files_of(name: str) -> Iterator[tuple[str, Path]]:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise ConfigError(f"{name} is not installed here.", f"Install it: pip install {name}.") from None
    for file in found.files or ():
        path = Path(str(file.locate()))
        if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
            yield str(file), path


def _linked(files: Iterable[Path]) -> dict[str, Path]:
    """Return the shared libraries that the files need, all in one folder, and the loader where they expect it."""
    binaries = [str(path) for path in files if _is_elf(path)]
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    libraries = {f"/usr/lib/{Path(path).name}": Path(path) for path in _LIBRARY.findall(told)}
    loaders = {path if not path.startswith("/lib/") else f"/usr{path}": Path(path) for path in _LOADER.findall(told)}
    return libraries | loaders


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _owned_by_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.mode & 0o100 else 0o644  # a private file of the builder is read by others there
    return entry


def _add_link(archive: tarfile.TarFile, path: str, target: str) -> None:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry, io.BytesIO())
