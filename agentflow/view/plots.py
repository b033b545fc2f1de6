"""Learning curves of a run as PNG files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentflow.runs import StoredRun, write_file

_COLORS = ("#2458a6", "#c2571a", "#2e7d32", "#7b3fa0", "#a51d2d", "#00838f", "#6d4c41", "#5f6a72", "#b38600", "#ad3d82")
_MAX_MARKED_POINTS = 60


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: which metrics share an axis.

    Attributes:
        name: The file's name and the title.
        metrics: Names of metrics; one that ends in `/` stands for all that begin with it and have no other panel.
    """

    name: str
    metrics: tuple[str, ...]


PANELS = (
    Panel("success", ("success/", "heldout/success", "heldout/success_low", "heldout/success_high")),
    Panel("reward", ("reward/raw", "reward/shaped")),
    Panel("terms", ("reward/",)),
    Panel("shaping", ("shaping/",)),
    Panel("loss", ("loss", "loss/")),
    Panel("gradient", ("grad_norm",)),
    Panel("learning_rate", ("learning_rate",)),
    Panel("kl", ("kl", "kl/", "ratio/", "clip_fraction", "clip_fraction/")),
    Panel("entropy", ("entropy",)),
    Panel("mismatch", ("mismatch/",)),
    Panel("groups", ("groups/",)),
    Panel("failed", ("failed/",)),
    Panel("turns", ("turns/", "heldout/")),
    Panel("tokens", ("tokens/",)),
    Panel("time", ("time/",)),
)


def write_plots(run: StoredRun, curves: Mapping[str, bytes] | None = None) -> list[Path]:
    """Write one PNG for each panel that has data into the run's `plots/` and return the files.

    Args:
        run: The run.
        curves: The panels as `draw_panels` drew them; None draws them.

    Raises:
        DataError: The metrics are damaged.
        StorageError: The disk is full or the folder cannot be written.
    """
    folder = run.path / "plots"
    folder.mkdir(exist_ok=True)
    files = []
    for name, image in (draw_panels(run.metrics()) if curves is None else curves).items():
        files.append(folder / f"{name}.png")
        write_file(files[-1], image)
    return files


def draw_panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Draw every panel that has at least one number, as PNG by the panel's name."""
    columns = _columns(rows)
    named = {name for panel in PANELS for name in panel.metrics}
    images = {}
    for panel in PANELS:
        shown = [name for name in columns if _belongs(name, panel, named)]
        if shown:
            images[panel.name] = _draw(panel.name, {name: columns[name] for name in shown})
    return images


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "iteration" and isinstance(value, int | float):
                columns.setdefault(name, []).append((row["iteration"], float(value)))
    return columns


def _belongs(name: str, panel: Panel, named: set[str]) -> bool:
    if name in named:
        return name in panel.metrics
    return any(pattern.endswith("/") and name.startswith(pattern) for pattern in panel.metrics)


def _draw(title: str, columns: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second to import

    # Figure without pyplot keeps no global state and needs no display.
    figure = Figure(figsize=(5.6, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(columns.items()):
        marker = "o" if len(points) <= _MAX_MARKED_POINTS else ""
        style = "-" if index < len(_COLORS) else "--"
        color = _COLORS[index % len(_COLORS)]
        axes.plot(*zip(*points, strict=True), style, color=color, marker=marker, markersize=2.5, lw=1.4, label=name)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("iteration", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    # Without a fixed Software entry the bytes would change with every matplotlib.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
