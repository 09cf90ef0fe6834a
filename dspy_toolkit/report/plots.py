"""Figures as PNG bytes.

Covered: the comparison behind a decision. Drawn with matplotlib's object interface on its Agg canvas: no window,
no process-wide state, safe from any thread.

Not covered: computing what is drawn (`dspy_toolkit.gate.evidence`), keeping it (`dspy_toolkit.tracking.runs`).
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dspy_toolkit.evaluation import Report

_INK, _GREY, _GREEN, _RED = "#222222", "#8a8a8a", "#1b7f4d", "#b3362b"
# Figures share no state, but matplotlib's font and text caches are not thread-safe.
_DRAWING = threading.Lock()


def comparison_plot(
    candidate: Report,
    champion: Report,
    delta: float,
    low: float,
    high: float,
    *,
    level: float = 0.95,
    title: str = "",
    metric: str = "score",
    against: str = "champion",
) -> bytes:
    """A figure of two panels: the means with their 95 % intervals, and the difference with its decision interval.

    Args:
        candidate: the compiled program.
        champion: the live program.
        delta: candidate's mean less that of `against`, in [-1, 1].
        low: lower end of the decision interval of `delta`; above 0 the interval is drawn green.
        high: its upper end; below 0 it is drawn red.
        level: the decision interval's level, in (0, 1).
        title: over both panels.
        metric: what the means are of.
        against: what the candidate was compared with, in words.

    Returns:
        A PNG of 1350 by 450 pixels.
    """
    with _DRAWING:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3), dpi=150, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        means, difference = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_means(means, {"champion": champion, "candidate": candidate}, metric)
        _draw_difference(difference, delta, low, high, level, against)
        if title:
            figure.suptitle(title, fontsize=11, color=_INK, x=0.01, ha="left")
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    return buffer.getvalue()


def _draw_means(axes: Axes, rows: dict[str, Report], metric: str) -> None:
    for place, (name, value) in enumerate(rows.items()):
        color = _INK if name == "candidate" else _GREY
        _draw_interval(axes, place, value.mean, value.low, value.high, color)
        axes.annotate(
            f"{value.mean * 100:.1f} %",
            (value.mean, place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=color,
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # A margin on both sides, so that a mark at 0 or 1 is not cut.
    axes.set_xlim(-0.02, 1.02)
    axes.set_title(metric, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("mean, 95 % interval")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f} %")
    _clear(axes)


def _draw_difference(axes: Axes, delta: float, low: float, high: float, level: float, against: str) -> None:
    color = _GREEN if low > 0 else _RED if high < 0 else _INK
    axes.axvline(0, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    _draw_interval(axes, 0, delta, low, high, color)
    axes.annotate(_points(delta), (delta, 0), (0, 9), textcoords="offset points", ha="center", color=color)
    reach = 1.15 * max(abs(low), abs(high), abs(delta), 0.02)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.set_title(f"candidate \N{MINUS SIGN} {against}", loc="left", fontsize=10, color=_INK)
    axes.set_xlabel(f"points, {level * 100:.4g} % interval [{_points(low)}, {_points(high)}]")
    axes.xaxis.set_major_formatter(lambda value, _: _points(value))
    _clear(axes)


def _points(share: float) -> str:
    value = round(share * 100, 1)
    # The minus sign is as wide as the plus, and what matplotlib writes on other axes.
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _draw_interval(axes: Axes, place: float, middle: float, low: float, high: float, color: str) -> None:
    axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="butt")
    axes.plot([low, high], [place, place], color=color, linestyle="none", marker="|", markersize=9, markeredgewidth=2)
    axes.plot([middle], [place], color=color, marker="o", markersize=7)


def _clear(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.tick_params(left=False, colors=_INK, labelsize=9)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(_INK)
    axes.xaxis.label.set_fontsize(9)
