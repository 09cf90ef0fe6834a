"""Programs behind an HTTP API: the champion of a project, or several programs together, for applications to call.

app         `create_app`: a whole application; `serving_router`: its routes, for an application of yours
service     what answers: programs by name, falling back, ensembles; usable without HTTP
programs    a program that is loaded, with the schemas of its fields; watching keeps it the registry's champion
replies     what a request wants, and what it gets
running     one program on one input, on an event loop; streaming sends its fields as they grow
fallback    who answers where the first cannot; breakers
ensembles   several answers become one
routes, chat, openapi, page   the HTTP side: programs, OpenAI's chat, the description, the page at `/`
requests    bodies, deadlines, clients that go away; problems are what they are told
admission   how much at once, and how often; keys are who may
feedback    what users say of answers, in `home/feedback`; remembered holds the answers that they may speak of
dataset     rows of it, for the next optimization
challengers a version beside the champion
traces      a share of the requests in MLflow; measures are for Prometheus

FastAPI is imported by the HTTP side alone, and is an extra: `pip install 'dspy-toolkit[serve]'`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.feedback import Feedback, read_feedback
    from dspy_toolkit.serving.app import create_app, serving_router
    from dspy_toolkit.serving.replies import Ask, Reply
    from dspy_toolkit.serving.service import Service

__all__ = ["Ask", "Feedback", "Reply", "Service", "create_app", "read_feedback", "serving_router"]


def __getattr__(name: str) -> Any:
    # FastAPI and DSPy take seconds to import; who reads feedback needs neither.
    if name in ("create_app", "serving_router"):
        from dspy_toolkit.serving import app

        return getattr(app, name)
    if name in ("Feedback", "read_feedback"):
        from dspy_toolkit import feedback

        return getattr(feedback, name)
    if name in ("Ask", "Reply"):
        from dspy_toolkit.serving import replies

        return getattr(replies, name)
    if name == "Service":
        from dspy_toolkit.serving.service import Service

        return Service
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
