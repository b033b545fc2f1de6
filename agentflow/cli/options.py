"""Print the options of a configuration, or those of some of its sections."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentflow.cli.tables import print_table
from agentflow.config import Option, suggest
from agentflow.errors import ConfigError

_MAX_SHOWN_CHARACTERS = 40


def print_options(options: Sequence[Option], sections: Sequence[str], values: Mapping[str, Any]) -> None:
    """Print options with type, value and meaning.

    Args:
        options: All there are.
        sections: Which of them, by the start of their names; all if none is given.
        values: The nested values of the configuration; an option that has none shows its default.

    Raises:
        ConfigError: There is no such section.
    """
    names = [option.name for option in options]
    for section in sections:
        if not any(_is_in(option, section) for option in options):
            raise ConfigError(f"There is no section {section!r}.", suggest(section, names))
    chosen = [option for option in options if not sections or any(_is_in(option, section) for section in sections)]
    rows = [(option.name, option.type, _current(option, values), option.description) for option in chosen]
    print_table(("option", "type", "value", "meaning"), rows)


def _is_in(option: Option, section: str) -> bool:
    return f"{option.name}.".startswith(f"{section}.")


def _current(option: Option, values: Mapping[str, Any]) -> str:
    value: Any = values
    for part in option.name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return option.default
        value = value[part]
    text = "null" if value is None else str(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 3]}..."
