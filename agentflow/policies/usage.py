"""What frozen models cost: tokens, prices, and a journal of both that outlives the process."""

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import Field

from agentflow.config import Config
from agentflow.errors import DataError, StorageError


class Prices(Config):
    """What a million tokens cost, in any currency."""

    input: float = Field(ge=0, description="Price of a million tokens of prompts.")
    output: float = Field(ge=0, description="Price of a million tokens of replies.")
    cached: float | None = Field(
        None, ge=0, description="Price of a million tokens of prompts that the server had cached; null for `input`."
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a client has used so far.

    Attributes:
        num_replies: Replies received.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens of the replies.
        cached_tokens: Those tokens of the prompts that the server had cached.
    """

    num_replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompts and replies together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def cost(self, prices: Prices) -> float:
        """Return what this costs."""
        cached = prices.input if prices.cached is None else prices.cached
        fresh = (self.prompt_tokens - self.cached_tokens) * prices.input
        return (fresh + self.cached_tokens * cached + self.completion_tokens * prices.output) / 1e6


class Journal:
    """Every reply's usage, a line each, on disk before anybody reads the reply: a killed run forgets none.

    Args:
        path: The file; it is made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, Usage]:
        """Return the sum of every role; a last line that a kill cut short does not count.

        Raises:
            DataError: The file is damaged.
        """
        found: dict[str, Usage] = {}
        if not self._path.exists():
            return found
        content = self._path.read_bytes()
        complete, _, cut = content.rpartition(b"\n")
        if cut:
            os.truncate(self._path, len(content) - len(cut))
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                entry: dict[str, Any] = json.loads(line)
                role = str(entry.pop("role"))
                found[role] = found.get(role, Usage()) + Usage(**{name: int(entry[name]) for name in entry})
            except (ValueError, KeyError, TypeError, AttributeError):
                raise DataError(f"{self._path} line {number} is no usage of a model.", "Restore the file.") from None
        return found

    def add(self, role: str, usage: Usage) -> None:
        """Append one reply's usage.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        line = f"{json.dumps({'role': role, **asdict(usage)})}\n".encode()
        try:
            with self._lock, self._path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            raise StorageError(f"Cannot write {self._path}: {error.strerror}.", "Make room on the disk.") from error


class Pace:
    """Spaces what is started so that no minute has more than its share, over all event loops and threads.

    Args:
        per_minute: How much a minute bears; None for any amount.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._next_start_s = 0.0

    def book(self, amount: float = 1) -> float:
        """Take the next place, as long as the amount makes it; return the seconds until it begins."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start_s)
            if self._per_minute is not None:
                self._next_start_s = start + 60 * amount / self._per_minute
            return start - now

    def refund(self, amount: float) -> None:
        """Give back what was booked and not used; a negative amount was used and not booked."""
        if self._per_minute is not None:
            with self._lock:
                self._next_start_s -= 60 * amount / self._per_minute

    def hold(self, seconds: float) -> None:
        """Let nothing start for a while."""
        with self._lock:
            self._next_start_s = max(self._next_start_s, time.monotonic() + seconds)


def describe_usage(name: str, usage: Usage, prices: Prices | None) -> str:
    """Say in one line what a model has used and what it costs."""
    cost = "" if prices is None else f", cost {usage.cost(prices):.4f}"
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    return (
        f"{name}: {usage.num_replies:,} replies, {usage.prompt_tokens:,} tokens in{cached}, "
        f"{usage.completion_tokens:,} out{cost}"
    )


def usage_metrics(usages: Mapping[str, tuple[Usage, Prices | None]]) -> dict[str, float]:
    """Return every model's usage and cost since the run began, under `openai/<role>/`."""
    rows: dict[str, float] = {}
    for name, (usage, prices) in usages.items():
        rows |= {f"openai/{name}/{key}": value for key, value in asdict(usage).items()}
        if prices is not None:
            rows[f"openai/{name}/cost"] = usage.cost(prices)
    return rows
