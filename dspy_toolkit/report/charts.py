"""The page's charts as inline SVG. Their colours come from the page's styles, so that they follow light and dark mode.

Arms differ by shape as well as by colour, and a table beside each chart shows the same values.

Not covered: figures outside the page (`dspy_toolkit.report.plots`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from dspy_toolkit.report.calibration import Calibration
from dspy_toolkit.report.curves import Curve, Front
from dspy_toolkit.report.words import count, percent

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 18, 52
KINDS = 8
"""Number of colours and shapes; a ninth generator starts again with the first."""

_EMPTY = Markup("")


def search_chart(curves: Sequence[Curve], baseline: float) -> Markup:
    """Best validation score so far against LM calls: a line of steps for each generator, its candidates as marks.

    Args:
        curves: at least one, with at least one point.
        baseline: the baseline, drawn as a dashed line.
    """
    scores = [point.score for curve in curves for point in curve.points]
    last = max(point.lm_calls for curve in curves for point in curve.points)
    across, up = _Axis(0, last, LEFT, WIDTH - RIGHT), _score_axis([*scores, baseline])
    parts = [_frame(across, up, "logical LM calls", "score on validation")]
    at = up.place(baseline)
    parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "baseline"))
    for kind, curve in enumerate(curves):
        parts.append(_steps(curve, across, up, kind))
    for kind, curve in enumerate(curves):
        for point in curve.points:
            said = f"{curve.name}, {point.label}: {percent(point.score)} at {count(point.lm_calls)} calls"
            parts.append(mark(kind, across.place(point.lm_calls), up.place(point.score), said))
    title = f"Best validation score so far against LM calls; the baseline scores {percent(baseline)}"
    return _svg(WIDTH, HEIGHT, title, parts)


def front_chart(front: Front, generators: Sequence[str]) -> Markup:
    """Validation score against tokens a run; candidates off the Pareto front are faint.

    Args:
        generators: all, in the order of its colour and shape.
    """
    most = max(one.tokens for one in front.candidates)
    across = _Axis(0, most, LEFT, WIDTH - RIGHT)
    up = _score_axis([one.score for one in front.candidates])
    parts = [_frame(across, up, "tokens of one run", "score on validation")]
    for one in sorted(front.candidates, key=lambda one: one.on_front):
        said = f"{one.generator}, {one.label}: {percent(one.score)} with {count(round(one.tokens))} tokens"
        shape = mark(generators.index(one.generator) % KINDS, across.place(one.tokens), up.place(one.score), said)
        parts.append(shape if one.on_front else Markup('<g class="faint">{}</g>').format(shape))
    return _svg(WIDTH, HEIGHT, "Validation score against tokens of one run", parts)


def reliability_chart(found: Calibration) -> Markup:
    """Mean score against mean confidence, a mark for each bin of rows; on the dashed line the two are the same."""
    across, up = _Axis(0, 100, LEFT, WIDTH - RIGHT, 20), _Axis(0, 1, HEIGHT - BOTTOM, TOP, 0.2)
    parts = [_frame(across, up, "confidence, in %", "score")]
    parts.append(_line(across.place(0), up.place(0), across.place(100), up.place(1), "baseline"))
    for each in found.bins:
        said = f"{count(each.rows)} rows: confidence {percent(each.confidence)}, score {percent(each.score)}"
        parts.append(mark(0, across.place(100 * each.confidence), up.place(each.score), said))
    return _svg(WIDTH, HEIGHT, "Score against confidence; on the dashed line they are the same", parts)


def key_mark(kind: int) -> Markup:
    """The mark of a generator, for a legend; hidden from screen readers."""
    return Markup('<svg class="key" viewBox="0 0 16 16" aria-hidden="true">{}</svg>').format(mark(kind, 8, 8, ""))


def mark(kind: int, x: float, y: float, said: str) -> Markup:
    """A mark at (x, y) in the shape and colour of its kind; `said` is its tooltip."""
    kind %= KINDS
    title = Markup("<title>{}</title>").format(said) if said else _EMPTY
    if kind == 0:
        return Markup('<circle class="mark k{}" cx="{}" cy="{}" r="4.5">{}</circle>').format(kind, _n(x), _n(y), title)
    corners = " ".join(f"{_n(x + 5.2 * dx)},{_n(y + 5.2 * dy)}" for dx, dy in _SHAPES[kind])
    return Markup('<polygon class="mark k{}" points="{}">{}</polygon>').format(kind, corners, title)


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    turns = [math.pi * step / points - math.pi / 2 for step in range(2 * points)]
    reach = [1.15 if step % 2 == 0 else inner for step in range(2 * points)]
    return [(r * math.cos(turn), r * math.sin(turn)) for r, turn in zip(reach, turns, strict=True)]


def _plus() -> list[tuple[float, float]]:
    one, two = 0.35, 1.1
    quarter = [(one, -two), (one, -one), (two, -one)]
    return [_turned(corner, turns) for turns in range(4) for corner in quarter]


def _turned(corner: tuple[float, float], turns: int) -> tuple[float, float]:
    """By so many right angles."""
    x, y = corner
    return [(x, y), (-y, x), (-x, -y), (y, -x)][turns]


_SHAPES: dict[int, list[tuple[float, float]]] = {
    1: [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    2: [(0, -1.1), (1.05, 0.8), (-1.05, 0.8)],
    3: [(0, -1.2), (1.1, 0), (0, 1.2), (-1.1, 0)],
    4: [(0, 1.1), (1.05, -0.8), (-1.05, -0.8)],
    5: _star(4, 0.45),
    6: _star(5, 0.5),
    7: _plus(),
}


class _Axis:
    """From values to coordinates, with round tick values."""

    def __init__(self, low: float, high: float, start: float, end: float, step: float | None = None) -> None:
        step = step or _round_step((high - low) / 6 or 1.0)
        self.low, self.high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        if self.high <= self.low:
            self.high = self.low + step
        self._start, self._end = start, end
        steps = round((self.high - self.low) / step)
        self.ticks = [self.low + step * number for number in range(steps + 1)]

    def place(self, value: float) -> float:
        return self._start + (self._end - self._start) * (value - self.low) / (self.high - self.low)


def _score_axis(scores: Sequence[float]) -> _Axis:
    """Upwards; never narrower than 10 points, so that noise does not look like an effect, and within 0 and 100 %."""
    low, high = min(scores), max(scores)
    if high - low < 0.1:
        low = max(0.0, min((low + high) / 2 - 0.05, 0.9))
        high = min(1.0, low + 0.1)
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 6)
    return _Axis(low, high, HEIGHT - BOTTOM, TOP, step)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5, 10, 20, … that is not smaller; calls and tokens are whole."""
    power = 10 ** math.floor(math.log10(rough)) if rough > 1 else 1
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough - 1e-9)


def _frame(across: _Axis, up: _Axis, below: str, beside: str) -> Markup:
    parts = []
    foot = HEIGHT - BOTTOM
    for tick in up.ticks:
        at = up.place(tick)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "grid"))
        parts.append(_text(LEFT - 8, at + 5, f"{100 * tick:.0f} %", "end"))
    for tick in across.ticks:
        at = across.place(tick)
        parts.append(_line(at, foot, at, foot + 5, "axis"))
        parts.append(_text(at, foot + 21, f"{tick:,.0f}", "middle"))
    parts.append(_line(LEFT, foot, WIDTH - RIGHT, foot, "axis"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, below, "middle"))
    turned = Markup('<text transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(turned.format(_n((TOP + foot) / 2), beside))
    return _EMPTY.join(parts)


def _steps(curve: Curve, across: _Axis, up: _Axis, kind: int) -> Markup:
    """A line that goes on level until a better candidate is found."""
    first, *rest = curve.points
    path = [f"M{_n(across.place(first.lm_calls))} {_n(up.place(first.best))}"]
    for point in rest:
        path.append(f"H{_n(across.place(point.lm_calls))}V{_n(up.place(point.best))}")
    return Markup('<path class="steps k{}" d="{}"/>').format(kind % KINDS, "".join(path))


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, _EMPTY.join(parts)
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    shape = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return shape.format(kind, _n(x1), _n(y1), _n(x2), _n(y2))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, text)


def _n(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")
