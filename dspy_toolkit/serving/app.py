"""The application: routes, what they share, and its life.

    app = create_app(load_settings())                  # for uvicorn, or any ASGI server with one worker
    other.include_router(serving_router(settings))     # in an application of yours

One process has one engine, so there is one worker; more processes on one accelerator would wait for each other. Starting loads
the programs; stopping finishes what goes on and stops following the registry. Engines stay until the process ends, or
`dspy_toolkit.lm.close_engines`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from dspy_toolkit.serving import advice, chat, embeddings, routes
from dspy_toolkit.serving.admission import Admission
from dspy_toolkit.serving.edge import Backend, refusal
from dspy_toolkit.serving.keys import KeyRing, keys_file
from dspy_toolkit.serving.measures import Measures
from dspy_toolkit.serving.openapi import describe_api
from dspy_toolkit.serving.page import router as page_router
from dspy_toolkit.serving.service import Service
from dspy_toolkit.settings import Settings


def serving_router(settings: Settings, service: Service | None = None) -> APIRouter:
    """The routes of the API with their life, for an application that includes them: `other.include_router(…)`.

    Args:
        settings: the home, the registry, the models, and `[serving]`.
        service: what answers; made of the settings by default. One that is loaded already starts at once.
    """

    @asynccontextmanager
    async def life(app: Any) -> AsyncIterator[None]:
        answering = service or Service(settings)
        admission = Admission(settings.serving)
        measures = answering.measures = Measures(lambda: admission.active, lambda: admission.waiting)
        app.state.dspy_toolkit_serving = Backend(settings, answering, KeyRing(keys_file(settings)), admission, measures)
        try:
            await answering.start()
            yield
        finally:
            await answering.stop()

    router = APIRouter(lifespan=life)
    router.include_router(routes.router)
    router.include_router(chat.router)
    router.include_router(embeddings.router)
    router.include_router(advice.router)
    return router


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """An application that serves what the settings say, with the page at `/` and a description of itself at `/openapi.json`.

    Args:
        settings: the home, the registry, the models, and `[serving]`.
        service: as of `serving_router`.
    """
    app = FastAPI(
        title="dspy-toolkit",
        docs_url=None,
        redoc_url=None,
        # Its logs hold the texts of exceptions.
        telemetry={"logs": False, "operation_spans": False},
    )
    app.include_router(serving_router(settings, service))
    app.include_router(page_router)
    app.openapi = lambda: describe_api(app)  # pyright: ignore[reportAttributeAccessIssue]

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return refusal(error, "")

    return app
