"""The page of the HTTP routes: each with what its handler says of itself, and what a request may be told instead of an answer."""

from __future__ import annotations

import inspect

from _source import markdown


def routes_page() -> str:
    """Markdown: a section for each route, then the statuses."""
    from fastapi.routing import iter_route_contexts

    from dspy_toolkit.serving.app import create_app
    from dspy_toolkit.serving.openapi import WHY
    from dspy_toolkit.settings import Settings

    parts = [
        "# Routes",
        "What `dspy-toolkit serve` answers; [the guide](../serving.md) shows how. A running server describes itself, with the types of "
        "each program's own fields, at `/docs` and `/openapi.json`.",
    ]
    known = [each for each in iter_route_contexts(create_app(Settings()).routes) if each.path != "/openapi.json"]
    for route in sorted(known, key=lambda each: (each.path or "", *sorted(each.methods or ()))):
        methods = ", ".join(sorted(set(route.methods or ()) - {"HEAD", "OPTIONS"}))
        said = markdown(inspect.getdoc(route.endpoint) or "")
        parts.append(f"## `{methods} {route.path}`\n\n{said}".rstrip())
    rows = [f"| {status} | {why} |" for status, why in sorted(WHY.items())]
    parts.append("\n".join(["## Instead of an answer", "", "| status | |", "|---|---|", *rows]))
    return "\n\n".join(parts)
