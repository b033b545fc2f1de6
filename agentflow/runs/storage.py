"""Files and folders that exist complete or not at all, whatever kills the process or fills the disk."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agentflow.errors import AgentFlowError, StorageError

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_BELOW_BYTES = 1 << 20


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into an error that says so.

    Raises:
        StorageError: Writing below `path` failed.
    """
    try:
        yield
    except AgentFlowError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(path) from error
        remedy = "Check its permissions, or choose another folder with --out."
        raise StorageError(f"Cannot write {path}: {error.strerror or error}.", remedy) from error
    except Exception as error:
        # torch.save raises RuntimeError and safetensors its own class where the disk is full.
        if "No space left" in str(error) or "os error 28" in str(error) or _free_bytes(path) < _FULL_BELOW_BYTES:
            raise disk_full(path) from error
        raise


def check_writable(path: Path) -> None:
    """Check that a folder can be made and written, and leave everything as it was.

    Raises:
        StorageError: It cannot.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    with storing(path), tempfile.TemporaryDirectory(dir=existing):
        return


def disk_full(path: Path) -> StorageError:
    """Return the error for a full disk under `path`."""
    return StorageError(
        f"The disk that holds {path} is full.",
        "Free some space there. What was complete before is intact.",
    )


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file so that it is never seen half-written: temporary file, fsync, rename.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    temporary = _temporary(path)
    try:
        with storing(path):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            _sync(temporary)
            temporary.rename(path)
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends, complete and on disk, or vanishes.

    The folder holds a manifest with the size of every file, so that `is_complete` also notices a bad copy.

    Raises:
        StorageError: The disk is full or the folder cannot be written; what existed before is untouched.
    """
    assert not path.exists(), f"{path} exists: a complete folder is never overwritten"
    temporary = _temporary(path)
    # The clean-up stands outside: `storing` has to see the disk while it is full.
    try:
        with storing(path):
            temporary.mkdir(parents=True)
            yield temporary
            sizes = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
            (temporary / MANIFEST).write_text(json.dumps(sizes, indent=1))
            _sync_tree(temporary)
            temporary.rename(path)
            _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def is_complete(folder: Path) -> bool:
    """Say whether a folder made by `new_folder` still has every file with its size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen half-removed under its own name."""
    doomed = _temporary(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left unfinished directly in `folder`."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(existing).free
