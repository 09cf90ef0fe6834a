"""`dspy-toolkit mcp`: the door for coding agents.

Not covered: what its tools are (`dspy_toolkit.agents`).
"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators


def mcp(
    *,
    http: Annotated[int | None, Parameter(show_default=False, validator=validators.Number(gte=1, lt=65536))] = None,
    allow_optimize: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    most_calls: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1000,
) -> None:
    """Serve what the toolkit knows to a coding agent, by the Model Context Protocol, on stdin and stdout.

    Tools read projects, programs, runs, reports, costs and the doctor's findings; an agent names things, and no files.

    Args:
        http: Serve on this port of this machine instead, at /mcp.
        allow_optimize: Also let it start optimizations, one at a time. Start the server in a clone: it needs the flows.
        most_calls: LM calls that all these optimizations together may take: their budgets, and what their probes and comparisons
            take at most, which is charged before they begin. Replies that cannot be read and are asked for again come on top.
    """
    from dspy_toolkit.agents import Jobs, make_server
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.doctor import examine
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)  # on stderr: stdout is the protocol's
    server = make_server(settings, doctor=examine, jobs=Jobs(settings, most_calls) if allow_optimize else None)
    if http is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=http)
