"""The page as HTML: the template, filled.

Everything but the charts made here is escaped. The page's content security policy forbids scripts and external
resources, so that even a mistake here would run nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dspy_toolkit.report.charts import front_chart, key_mark, reliability_chart, search_chart
from dspy_toolkit.report.gathering import Page
from dspy_toolkit.report.words import count, duration, percent, points, readable

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "page.html.j2"
FOLD = 400
"""Longer texts, in characters, are folded."""
DEMONSTRATIONS = 2
"""Demonstrations that are shown unfolded."""


def render(page: Page) -> str:
    """The page as one HTML text that needs nothing beside it."""
    generators = [curve.name for curve in page.curves]
    return _template().render(
        page=page,
        search=search_chart(page.curves, page.baseline) if page.curves else None,
        tradeoff=front_chart(page.front, generators) if page.front else None,
        reliability=reliability_chart(page.calibration) if page.calibration else None,
        keys=[(key_mark(kind), name) for kind, name in enumerate(generators)],
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
    environment.filters.update(percent=percent, points=points, number=count, duration=duration, readable=readable)
    environment.globals.update(fold=FOLD, open_demonstrations=DEMONSTRATIONS)
    return environment.get_template(TEMPLATE)
