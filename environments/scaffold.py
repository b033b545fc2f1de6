"""Write the files of a new environment: `agentflow envs new NAME [--expert]`."""

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from agentflow.errors import ConfigError, StorageError

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def scaffold(name: str, folder: Path, *, expert: bool = False) -> list[Path]:
    """Write `NAME.py`, an environment that works, and `test_NAME.py`, which checks it.

    Args:
        name: The module's name in snake_case; the class is named likewise in CamelCase.
        folder: Where to write; it is made if it does not exist.
        expert: Whether to write one with an expert that a model can imitate first.

    Returns:
        The files written: the environment, then its test.

    Raises:
        ConfigError: The name is no module name of one's own, or one of the files exists.
        StorageError: The folder cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise ConfigError(
            f"{name!r} cannot name an environment: it must be small letters, digits and _, neither a keyword of Python "
            "nor a module of its library.",
            "For example: my_shop.",
        )
    template = files("agentflow.environments") / "template"
    sources = {"": "_my_environment_with_expert.py" if expert else "_my_environment.py"}
    sources["test_"] = "_test_my_environment.py"
    texts = {
        folder / f"{prefix}{name}.py": (template / source).read_text(encoding="utf-8")
        for prefix, source in sources.items()
    }
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} exists.", "Choose another name, or delete it first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(
                text.replace("MyEnvironment", class_name(name)).replace("my_environment", name), encoding="utf-8"
            )
    except OSError as error:
        raise StorageError(f"Cannot write {error.filename}: {error.strerror}.", "Choose another folder.") from error
    return list(texts)


def class_name(name: str) -> str:
    """Return the name of the class for a module name: `my_shop` gives `MyShop`."""
    return "".join(part.capitalize() for part in name.split("_"))
