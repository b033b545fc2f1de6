"""The words after a command that are options of a configuration, not of the command."""

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from agentflow.errors import ConfigError


def overrides(words: Sequence[str], *, known: Sequence[str] = ()) -> list[str]:
    """Turn `section.key=value`, `--section.key value` and `--section.key=value` into `section.key=value`.

    Args:
        words: What the command did not take itself.
        known: The command's own options, for a did-you-mean.

    Raises:
        ConfigError: A word is neither.
    """
    found = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            if not equals:
                raise ConfigError(f"{word!r} is neither an option nor section.key=value.", _near(word, known))
            found.append(word)
        elif not word.startswith("--") or "." not in name:
            raise ConfigError(f"There is no option {name!r}.", _near(name, known))
        elif equals:
            found.append(word[2:])
        elif not waiting or waiting[0].startswith("--"):
            raise ConfigError(f"{word!r} needs a value.", f"Write {word} VALUE or {word[2:]}=VALUE.")
        else:
            found.append(f"{word[2:]}={waiting.pop(0)}")
    return found


def flag_overrides(flags: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Nest the flags that were set, and refuse one that a word sets too.

    Args:
        flags: The dotted name that each flag stands for, and its value; None if it was not given.
        given: The overrides, as `section.key=value`.

    Raises:
        ConfigError: A flag and a word set the same option.
    """
    named = {override.partition("=")[0].strip() for override in given}
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        if value is None:
            continue
        if name in named:
            raise ConfigError(f"{name} is set twice, as an option of the command and as a word.", "Keep one of them.")
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of gathered options; an absent one is empty.

    Raises:
        ConfigError: What stands there is a single value.
    """
    found = values.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{name} = {found!r} is one value where a section belongs.", f"Write {name}.KEY=VALUE.")
    return dict(found)


def hush_libraries() -> None:
    """Keep transformers from drawing progress bars between our lines; downloads from the hub keep theirs."""
    from transformers.utils import logging  # noqa: PLC0415  not every command needs it

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def noted_run(error: BaseException) -> str:
    """Return the folder of the run that an exception ended; empty if there was none."""
    notes = getattr(error, "__notes__", ())
    if not notes:
        return ""
    from agentflow.runs import RUN_NOTE  # noqa: PLC0415  a mistyped command should not wait for it

    return next((note.removeprefix(RUN_NOTE) for note in notes if note.startswith(RUN_NOTE)), "")


def _near(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word.partition("=")[0], known, n=1)
    command = " ".join(["agentflow", *[part for part in sys.argv[1:2] if not part.startswith("-")]])
    listed = f"`agentflow config show` lists the options of a run, `{command} --help` those of the command."
    return f"Did you mean {near[0]}?" if near else listed
