"""One self-contained page about a run: no script, no network, every text escaped, for models write most of it."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from agentflow.runs import StoredRun, write_file
from agentflow.view.mismatch import view_mismatches
from agentflow.view.plots import draw_panels
from agentflow.view.transcripts import EpisodeView, pick, token_decoder, view_episode

_MAX_LEDGER_ROWS = 40
_TERM_PREFIXES = {"raw": "reward/", "shaped contribution": "shaping/"}
_NOT_TERMS = frozenset({"reward/raw", "reward/shaped"})
_HEADLINES = (
    ("held-out success", "heldout/success", ".3f"),
    ("success", "success/mean", ".3f"),
    ("raw reward", "reward/raw", ".3f"),
    ("shaped reward", "reward/shaped", ".3f"),
    ("turns", "turns/mean", ".2f"),
)


def write_report(run: StoredRun, curves: Mapping[str, bytes] | None = None) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Args:
        run: The run.
        curves: The learning curves as `draw_panels` drew them; None draws them.

    Raises:
        DataError: The metrics or the trajectories are damaged.
        StorageError: The disk is full or the folder cannot be written.
    """
    path = run.path / "report.html"
    # Garbage text may hold lone surrogates, which UTF-8 has no bytes for.
    write_file(path, render_report(run, curves).encode("utf-8", errors="replace"))
    return path


def render_report(run: StoredRun, curves: Mapping[str, bytes] | None = None) -> str:
    """Return the page; see `write_report`.

    Raises:
        DataError: The metrics or the trajectories are damaged.
    """
    rows = run.metrics()
    drawn = draw_panels(rows) if curves is None else curves
    facts_path, config_path = run.path / "env.json", run.path / "config.yaml"
    folder = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("report.html.j2").render(
        name=run.path.name,
        facts=json.loads(facts_path.read_text(encoding="utf-8")) if facts_path.exists() else {},
        config=config_path.read_text(encoding="utf-8"),
        num_iterations=rows[-1]["iteration"] if rows else 0,
        headlines=_headlines(rows),
        curves={name: base64.b64encode(image).decode() for name, image in drawn.items()},
        ledgers=[ledger(rows, title, prefix) for title, prefix in _TERM_PREFIXES.items()],
        mismatches=view_mismatches(run),
        iteration=next(reversed(run.rollout_iterations()), None),
        episodes=_episodes(run),
    )


def ledger(rows: Sequence[Mapping[str, Any]], title: str, prefix: str) -> dict[str, Any]:
    """Return a table of every reward term over the iterations.

    Args:
        rows: The metrics of every iteration.
        title: What the numbers are.
        prefix: Which metrics are terms.

    Returns:
        The `title`, the `terms` and the `rows`: the iteration, and one number or None for each term.
    """
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix) and name not in _NOT_TERMS)
    step = max(1, -(-len(rows) // _MAX_LEDGER_ROWS))
    shown = [row for i, row in enumerate(rows) if i % step == 0 or i == len(rows) - 1]
    table = [(row["iteration"], [row.get(name) for name in names]) for row in shown if names.keys() & row.keys()]
    return {"title": title, "terms": [name.removeprefix(prefix) for name in names], "rows": table}


def _headlines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    found = []
    for title, name, form in _HEADLINES:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            found.append((title, format(values[0], form), format(values[-1], form)))
    return found


def _episodes(run: StoredRun) -> list[EpisodeView]:
    iterations = run.rollout_iterations()
    if not iterations:
        return []
    checkpoint = run.latest_checkpoint()
    decode = token_decoder(checkpoint.path if checkpoint else None)
    chosen = pick(list(run.groups(iterations[-1])))
    return [view_episode(title, task, episode, decode=decode) for title, task, episode in chosen]
