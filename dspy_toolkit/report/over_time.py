"""A project's optimizations over time, as one page: what the live program scored and with which interval, what was promoted, what
it cost and which levers were in it; and below it what monitoring has seen since.

From MLflow's data alone. The page loads nothing and runs no script.

Not covered: one run in full (`dspy_toolkit.report.gathering`), and who serves the page (`deployments/pages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape
from pydantic import AwareDatetime

from dspy_toolkit.report.words import count, duration, percent, points
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 300, 60, 18, 16, 40
MOST = 60
"""Runs on one chart: two months of nights."""


class Night(Frozen):
    """One optimization that came to a decision."""

    run_id: str
    when: AwareDatetime
    outcome: str
    optimizer: str
    levers: str
    """What is in the candidate, in words."""
    version: str
    """Empty where nothing was promoted."""
    lm_calls: int
    tokens: int
    seconds: float
    val: float | None
    """The candidate on validation rows."""
    sealed: float | None
    """The candidate on the sealed rows; None where they were not opened."""
    champion: float | None
    delta: float | None
    low: float | None
    high: float | None
    reason: str


class Look(Frozen):
    """One look of monitoring at the live program."""

    when: AwareDatetime
    version: str
    mean: float | None
    """Of the served replies that somebody has labelled."""
    high: float | None
    n: int
    reference: float | None
    e_value: float
    drifted: str


def page(project: str, nights: Sequence[Night], looks: Sequence[Look], links: Sequence[tuple[str, str]] = ()) -> str:
    """The page as HTML.

    Args:
        project: its name.
        nights: the oldest first.
        looks: the oldest first.
        links: (text, address), to other pages.
    """
    return _template().render(
        project=project,
        nights=list(reversed(nights))[:MOST],
        looks=list(reversed(looks))[:MOST],
        links=links,
        chart=scores_chart(nights[-MOST:]) if nights else None,
        watched=looks_chart(looks[-MOST:]) if any(look.mean is not None for look in looks) else None,
    )


def scores_chart(nights: Sequence[Night]) -> Markup:
    """Scores against the number of the run: the champion's with the interval of the difference, candidates, promotions."""
    values = [value for night in nights for value in (night.val, night.sealed, night.champion) if value is not None]
    axis = _Up(values)
    parts = [axis.frame()]
    for place, night in enumerate(nights):
        x = _across(place, len(nights))
        said = f"{night.when:%Y-%m-%d}, {night.optimizer}: {night.outcome}. {night.reason}"
        if night.val is not None:
            parts.append(_dot(x, axis.place(night.val), "k1", said, hollow=True))
        if night.sealed is not None and night.champion is not None:
            if night.low is not None and night.high is not None:
                ends = [axis.place(min(1.0, max(0.0, night.champion + end))) for end in (night.low, night.high)]
                parts.append(_line(x, ends[0], x, ends[1], "k0"))
            parts.append(_dot(x, axis.place(night.sealed), "k0", said))
        if night.outcome == "promoted":
            parts.append(_line(x, TOP, x, HEIGHT - BOTTOM, "promotion"))
    parts.append(_ends(nights[0].when, nights[-1].when))
    return _svg("Score of each optimization over time", parts)


def looks_chart(looks: Sequence[Look]) -> Markup:
    """The mean of the labelled replies, and the score of the promotion."""
    known = [look for look in looks if look.mean is not None]
    values = [value for look in known for value in (look.mean, look.reference) if value is not None]
    axis = _Up(values)
    parts = [axis.frame()]
    for place, look in enumerate(known):
        x = _across(place, len(known))
        assert look.mean is not None
        if look.reference is not None:
            parts.append(
                _dot(x, axis.place(look.reference), "k7", f"promoted with {percent(look.reference)}", hollow=True)
            )
        said = f"{look.when:%Y-%m-%d %H:%M}: {percent(look.mean)} on {look.n} replies, e-value {look.e_value:.3g}"
        parts.append(_dot(x, axis.place(look.mean), "k2", said))
    parts.append(_ends(known[0].when, known[-1].when))
    return _svg("Mean score of the labelled replies over time", parts)


class _Up:
    """The axis of scores, from and to a round number, with some air."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values, default=0.0), max(values, default=1.0)
        self.step = next(step for step in (0.02, 0.05, 0.1, 0.25) if high - low <= 4 * step or step == 0.25)
        self.low = max(0.0, math.floor(low / self.step - 0.3) * self.step)
        self.high = min(1.0, math.ceil(high / self.step + 0.3) * self.step)

    def place(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def frame(self) -> Markup:
        parts = []
        for step in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + step * self.step
            y = self.place(value)
            parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
            parts.append(_text(LEFT - 8, y + 4, f"{100 * value:.0f} %", "end"))
        return Markup("").join(parts)


def _across(place: int, of: int) -> float:
    return LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * (place / (of - 1) if of > 1 else 0.5)


def _ends(first: datetime, last: datetime) -> Markup:
    y = HEIGHT - BOTTOM + 20
    both = [_text(LEFT, y, f"{first:%Y-%m-%d}", "start")]
    if last.date() != first.date():
        both.append(_text(WIDTH - RIGHT, y, f"{last:%Y-%m-%d}", "end"))
    return Markup("").join(both)


def _dot(x: float, y: float, kind: str, said: str, *, hollow: bool = False) -> Markup:
    shape = "hollow" if hollow else "full"
    return Markup('<circle class="{} {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
        kind, shape, x, y, said
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    inside = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>').format(
        WIDTH, HEIGHT, escape(title), inside
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, number=count, duration=duration)
    return environment.get_template("over_time.html.j2")
