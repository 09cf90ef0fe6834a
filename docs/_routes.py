"""The page of the HTTP routes: each with what its handler says of itself, and what a request may be told instead of an answer."""

from __future__ import annotations

import inspect
from typing import Any

from _source import markdown


def routes_page() -> str:
    """Markdown: a section for each route, then the statuses."""
    from dspy_toolkit.serving import advice, chat, page, routes
    from dspy_toolkit.serving.openapi import WHY

    parts = [
        "# Routes",
        "What `dspy-toolkit serve` answers; [the guide](../serving.md) shows how. A running server describes itself, with the types of "
        "each program's own fields, at `/docs` and `/openapi.json`.",
    ]
    known: list[Any] = [
        each for router in (routes.router, chat.router, advice.router, page.router) for each in router.routes
    ]
    for route in sorted(known, key=lambda each: (each.path, *sorted(each.methods))):
        methods = ", ".join(sorted(route.methods - {"HEAD", "OPTIONS"}))
        said = markdown(inspect.getdoc(route.endpoint) or "")
        parts.append(f"## `{methods} {route.path}`\n\n{said}".rstrip())
    rows = [f"| {status} | {why} |" for status, why in sorted(WHY.items())]
    parts.append("\n".join(["## Instead of an answer", "", "| status | |", "|---|---|", *rows]))
    return "\n\n".join(parts)
