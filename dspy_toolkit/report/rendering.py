"""The page as HTML: the template, filled.

Everything that is not a chart of ours is escaped. The page's own policy forbids scripts and anything from elsewhere, so
that even a fault here would run nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.report.charts import front_chart, key_mark, search_chart
from dspy_toolkit.report.gathering import Page, gather
from dspy_toolkit.report.words import count, duration, percent, points

if TYPE_CHECKING:
    from jinja2 import Template

    from dspy_toolkit.project import Project
    from dspy_toolkit.run import ReleasedRun
    from dspy_toolkit.store import Store

TEMPLATE = "page.html.j2"
FOLD = 400
"""Characters from which a text is folded."""
DEMONSTRATIONS = 2
"""Demonstrations that are shown unfolded."""


def render_report(
    run: ReleasedRun,
    project: Project,
    store: Store,
    before: Mapping[str, Any] | None = None,
    *,
    when: datetime | None = None,
) -> str:
    """The page of a run, as one HTML text that needs nothing beside it.

    Args:
        run: what the steps found.
        project: what was optimized.
        store: holds the run's objects.
        before: the state (`dump_state`) of the program that the candidate was compared with; None when it cannot be had.
        when: when the page is made; shown on it.

    Raises:
        ProjectError: the project's program cannot be made.
    """
    return render(gather(run, project, store, before, when=when))


def render(page: Page) -> str:
    """Fill the template."""
    arms = [curve.name for curve in page.curves]
    return _template().render(
        page=page,
        search=search_chart(page.curves, page.baseline) if page.curves else None,
        tradeoff=front_chart(page.front, arms) if page.front else None,
        keys=[(key_mark(kind), name) for kind, name in enumerate(arms)],
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
    environment.globals.update(fold=FOLD, open_demonstrations=DEMONSTRATIONS)
    return environment.get_template(TEMPLATE)
