"""Rows as a table for a terminal and as a figure.

A row is a dictionary with workload, way, system, measure, value and unit.

Not covered: deciding what is good enough; a goal that was missed is marked, and nothing fails.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.lm.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType

Rows = Sequence[dict[str, Any]]
COLORS = {
    "engine": "#1b7f4d",
    "expert": "#b0863f",
    "generate": "#c9c9c9",
    "mlx_lm.server": "#8a8a8a",
    "llama.cpp": "#4f6d8f",
}
SHADE = {"dspy": 1.0, "native": 0.55}
INK = "#222222"


def value_of(rows: Rows, workload: str, way: str, system: str, measure: str) -> float | None:
    """One number, or None where it was not measured."""
    return next((row["value"] for row in _of(rows, workload, way, system) if row["measure"] == measure), None)


def _of(rows: Rows, workload: str, way: str, system: str) -> Iterable[dict[str, Any]]:
    return (row for row in rows if (row["workload"], row["way"], row["system"]) == (workload, way, system))


def headline(workload: Workload) -> str:
    """The measure that a workload is about."""
    return {"burst": "rate", "stream": "first_token", "compile": "seconds", "width": "rate"}[workload.measure]


def times(rows: Rows, workload: Workload, way: str, peer: str) -> float | None:
    """How many times better the engine is than `peer`."""
    ours = value_of(rows, workload.name, way, "engine", headline(workload))
    theirs = value_of(rows, workload.name, way, peer, headline(workload))
    if not ours or not theirs:
        return None
    if workload.measure == "compile":  # peers may have spent other numbers of calls
        return times_of_rate(rows, workload, way, peer)
    return ours / theirs if headline(workload) == "rate" else theirs / ours


def times_of_rate(rows: Rows, workload: Workload, way: str, peer: str) -> float | None:
    """The same, in calls a second."""
    ours, theirs = (value_of(rows, workload.name, way, name, "rate") for name in ("engine", peer))
    return ours / theirs if ours and theirs else None


def tables(rows: Rows, systems: Sequence[str]) -> list[RenderableType]:
    """The engine beside its peers; and the engine's own figures."""
    from rich.table import Table

    main = Table(title="The engine and its peers, 16 threads", title_justify="left")
    for name in ("workload", "called by", *systems, "least possible"):
        main.add_column(name, justify="left" if name in ("workload", "called by") else "right")
    for workload in WORKLOADS:
        for way in workload.ways:
            if not any((row["workload"], row["way"]) == (workload.name, way) for row in rows):
                continue
            cells = [_cell(rows, workload, way, system) for system in systems]
            floor = value_of(rows, workload.name, "native", "engine", "floor")
            ours = value_of(rows, workload.name, way, "engine", "rate")
            reach = f"\nengine at {100 * ours / floor:.0f} %" if floor and ours else ""
            main.add_row(workload.title, way, *cells, f"{_number(floor)}/s{reach}" if floor else "–", end_section=True)
    own = Table(title="The engine's own figures", title_justify="left")
    for name in ("workload", "called by", "model's share of the time", "own time a step", "width", "padding"):
        own.add_column(name, justify="left" if name in ("workload", "called by") else "right")
    for workload in WORKLOADS:
        for way in workload.ways:
            found = {row["measure"]: row["value"] for row in _of(rows, workload.name, way, "engine")}
            if workload.measure in ("burst", "width") and found:
                texts = [("model_share", "{:.0f} %"), ("step_overhead", "{:.2f} ms"), ("width", "{:.1f}"), ("padding", "{:.0f} %")]  # fmt: skip
                cells = [form.format(found[name]) if found.get(name) is not None else "n/a" for name, form in texts]
                own.add_row(workload.title, way, *cells)
    return [main, own] if own.row_count else [main]


def _cell(rows: Rows, workload: Workload, way: str, system: str) -> str:
    mine = list(_of(rows, workload.name, way, system))
    value = value_of(rows, workload.name, way, system, headline(workload))
    if value is None:
        return "failed" if any(row["measure"] == "failed" for row in mine) else "–" if not mine else "n/a"
    unit = {"rate": "/s", "first_token": " s", "seconds": " s"}[headline(workload)]
    lines = [f"{_number(value)}{' tokens' if workload.measure == 'width' else ''}{unit}"]
    right = value_of(rows, workload.name, way, system, "right")
    if right is not None:
        lines.append(f"{right:.0f} % {'valid' if workload.kind == 'configure' else 'right'}")
    if workload.measure == "burst" and (tokens := value_of(rows, workload.name, way, system, "tokens")) is not None:
        lines[-1] += f", {tokens:.0f} tokens"
    if system != "engine" and (ratio := times(rows, workload, way, system)):
        goal = workload.goals.get(system)
        met = "" if goal is None else f" ({'✓' if ratio >= goal else '✗'} ≥ {goal:g})"
        lines.append(f"engine {_number(ratio)}×{met}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figure(rows: Rows, systems: Sequence[str], caption: str) -> bytes:
    """One panel a workload, a bar a system and way, the floor as a line; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # What only the engine can be asked has nothing to be compared with.
    names = {row["workload"] for row in rows if row["value"] is not None}
    shown = [workload for workload in WORKLOADS if workload.name in names and workload.measure != "width"]
    across = min(len(shown), 2) or 1
    down = -(-len(shown) // across) or 1
    drawn = Figure(figsize=(4.6 * across, 0.8 + 2.7 * down), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    panels = drawn.subplots(down, across, squeeze=False).flatten()
    for axes, workload in zip(panels, shown, strict=False):
        _panel(axes, rows, workload, systems)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    drawn.suptitle(
        "dspy_toolkit's engine and its peers: dark bars through dspy.LM, light bars natively",
        x=0.01,
        ha="left",
        color=INK,
    )
    drawn.supxlabel(caption, fontsize=8, color="#666666", x=0.01, ha="left")
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _panel(axes: Axes, rows: Rows, workload: Workload, systems: Sequence[str]) -> None:
    bars = [
        (system, way, value)
        for system in systems
        for way in workload.ways
        if (value := value_of(rows, workload.name, way, system, headline(workload))) is not None
    ]
    longest = max((value for _, _, value in bars), default=1.0)
    labels: dict[str, list[int]] = {}
    for place, (system, way, value) in enumerate(bars):
        axes.barh(place, value, color=COLORS.get(system, "#8fb59f"), alpha=SHADE[way], height=0.8)
        right = value_of(rows, workload.name, way, system, "right")
        text = f" {_number(value)}" + (f"  ({right:.0f} %)" if right is not None else "")
        axes.text(value, place, text, va="center", fontsize=8, color=INK)
        labels.setdefault(system, []).append(place)
    unit = "requests/s" if workload.measure == "burst" else "seconds (less is better)"
    brackets = {"burst": "valid" if workload.kind == "configure" else "right", "compile": "right on validation"}
    what = f"; in brackets: {brackets[workload.measure]}" if workload.measure in brackets else ""
    axes.set_xlabel(unit + what, fontsize=8, color=INK)
    floor = value_of(rows, workload.name, "native", "engine", "floor")
    if floor and workload.measure == "burst":
        axes.axvline(floor, color="#b3362b", linewidth=1, linestyle=(0, (4, 3)))
        axes.text(floor, len(bars) - 1, "least time ", ha="right", va="center", fontsize=7, color="#b3362b")
        longest = max(longest, floor / 1.3)
    axes.set_xlim(0, longest * 1.35)
    axes.set_yticks([sum(places) / len(places) for places in labels.values()], list(labels), fontsize=8)
    # Bars of one thickness, whoever takes part.
    axes.set_ylim(max(len(bars), 2 * len(systems)) - 0.4, -0.6)
    axes.set_title(workload.title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelsize=8, colors=INK)
