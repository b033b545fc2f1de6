"""What of the installed packages programs may see: a named list with what it needs, and nothing else.

All of them would be too much: beside numpy lie the user's own packages, a benchmark with its answers perhaps.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from agentflow.errors import ConfigError

PACKAGES = ("numpy", "sympy", "matplotlib")
"""Distributions that programs may import wherever they are installed, with all that they need."""
_NEEDED = re.compile(r"[A-Za-z0-9._-]+")
_NEVER = ("__pycache__", "agentflow")  # the environments know the answers


def shown_paths(packages: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the files and folders of the packages that programs may import; those that are not installed are left out.

    Args:
        packages: Distributions beside `PACKAGES`.

    Raises:
        ConfigError: One that was named is not installed, or not as files that can be shown.
    """
    for name in packages:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise ConfigError(f"{name} is not installed here.", f"Install it: pip install {name}.") from None
        if not [path for path in _paths_of(found) if not path.endswith(".dist-info")]:
            raise ConfigError(f"{name} has no files that can be shown.", "Install it without --editable.")
    return _with_all_needed((*PACKAGES, *packages))


@lru_cache(maxsize=8)
def _with_all_needed(names: tuple[str, ...]) -> tuple[str, ...]:
    paths: dict[str, None] = {}
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # it is needed elsewhere, or not at all
            continue
        paths |= dict.fromkeys(_paths_of(found))
        waiting += [needed[0] for text in found.requires or () if "extra ==" not in text
                    for needed in [_NEEDED.match(text)] if needed]  # fmt: skip
    return tuple(sorted(paths))


def _paths_of(found: Distribution) -> Iterator[str]:
    """Yield what stands directly in site-packages of a distribution."""
    roots = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "/", *_NEVER)}
    folder = Path(str(found.locate_file("")))
    for name in sorted(roots):
        if not name.endswith(".pth") and (folder / name).exists():
            yield str(folder / name)
