"""Find a class by a name of ours, an entry point, `package.module:Class` or `path/to/file.py:Class`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from agentflow.errors import AgentFlowError, ConfigError

ClassT = TypeVar("ClassT")


@dataclass(frozen=True)
class Family(Generic[ClassT]):
    """Classes that a name may stand for.

    Attributes:
        what: What they are, for messages: `environment`, `loss`.
        base: What each of them must be a subclass of.
        group: The entry-point group of packages that bring more of them.
        prefix: How the names of this family start within the group.
        tables: Modules of AgentFlow whose `TABLE` names more of them; they are imported when a name is looked up.
        own: What a user's own class is a subclass of, by its full name.
        usage: How a user names one of their own.
    """

    what: str
    base: type[ClassT]
    group: str
    own: str
    usage: str
    prefix: str = ""
    tables: tuple[str, ...] = ()

    @cached_property
    def table(self) -> Mapping[str, type[ClassT]]:
        """Those that ship with AgentFlow, by name."""
        found: dict[str, type[ClassT]] = {}
        for name in self.tables:
            found |= importlib.import_module(name).TABLE
        return found

    def find(self, spec: str) -> type[ClassT]:
        """Return the class that goes by a name.

        Raises:
            ConfigError: Nothing goes by that name, the file is missing, or it is something else.
        """
        if spec in self.table:
            return self.table[spec]
        return self.checked(find_object(spec, self._fits) if ":" in spec else self._installed(spec), spec)

    def checked(self, found: Any, spec: str) -> type[ClassT]:
        """Return what was found, if it is one of the family.

        Raises:
            ConfigError: It is something else.
        """
        if not self._fits(found):
            raise ConfigError(f"{spec!r} is not an agentflow {self.base.__name__}.", f"Subclass {self.own}.")
        return found  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        """List the names that are known without a file or module."""
        return sorted({*self.table, *self._points()})

    def _points(self) -> dict[str, Any]:
        points = entry_points(group=self.group)
        return {p.name.removeprefix(self.prefix): p for p in points if p.name.startswith(self.prefix)}

    def _installed(self, spec: str) -> Any:
        points = self._points()
        if spec in points:
            return points[spec].load()
        near = get_close_matches(spec, self.names(), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(self.names())}."
        raise ConfigError(f"There is no {self.what} {spec!r}.", f"{hint} Your own: {self.usage}.")

    def _fits(self, value: object) -> bool:
        return inspect.isclass(value) and issubclass(value, self.base) and value is not self.base


def absolute(spec: str) -> str:
    """Give a class in a file its whole path, so that a run can be continued from another folder."""
    location, _, found = spec.rpartition(":")
    return f"{Path(location).absolute()}:{found}" if location.endswith(".py") else spec


def find_object(spec: str, fits: Callable[[Any], bool], *, what: str = "") -> Any:
    """Return what `package.module:name` or `path/to/file.py:name` stands for.

    Args:
        spec: Module or file, a colon, and a name in it.
        fits: Says which objects could have been meant, for a did-you-mean.
        what: What they are, for messages.

    Raises:
        ConfigError: There is no such module or file, or no such name in it.
    """
    location, _, name = spec.rpartition(":")
    module = import_file(Path(location)) if location.endswith(".py") else _import_module(location)
    if hasattr(module, name):
        return getattr(module, name)
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    known = [value.__name__ for value in own if fits(value)]
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known) or 'none'}."
    raise ConfigError(f"{location!r} has no {what}{' ' if what else ''}{name!r}.", hint)


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"Cannot import {name!r}: {error}.", "Is it installed in this environment?") from error


def import_file(path: Path) -> Any:
    """Import a file under a private name; the same file is imported once.

    Raises:
        ConfigError: The file is missing or does not import.
    """
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", "Check the path before the colon in FILE.py:Class.")
    # A private name: the file must never shadow, or be shadowed by, an installed module of the same name.
    name = f"_agentflow_file_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py path always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        said = str(error) if isinstance(error, AgentFlowError) else f"{type(error).__name__}: {error}."
        raise ConfigError(f"{path} does not import: {said}") from error
    return module
