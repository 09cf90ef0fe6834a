"""The application: routes, what they share, and its life.

    app = create_app(load_settings())                  # for uvicorn, or any ASGI server with one worker
    other.include_router(serving_router(settings))     # in an application of yours

One process has one engine, so there is one worker; more processes on one accelerator would wait for each other. Starting loads
the programs; stopping finishes what goes on and stops following the registry. Engines stay until the process ends, or
`dspy_toolkit.lm.close_engines`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from dspy_toolkit.serving import advice, chat, embeddings, openapi, routes
from dspy_toolkit.serving.admission import Admission
from dspy_toolkit.serving.edge import Backend, answered
from dspy_toolkit.serving.keys import KeyRing, keys_file
from dspy_toolkit.serving.measures import Measures
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
        threads = ThreadPoolExecutor(advice.THREADS, thread_name_prefix="serving advice")
        ring = KeyRing(keys_file(settings))
        app.state.dspy_toolkit_serving = Backend(settings, answering, ring, admission, measures, threads)
        try:
            await answering.start()
            yield
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
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
        # Its own description would ask for no key.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would have no id, and be no answer of ours.
        redirect_slashes=False,
        # Its logs hold the texts of exceptions.
        telemetry={"logs": False, "operation_spans": False},
    )
    app.include_router(serving_router(settings, service))
    app.include_router(page_router)
    app.include_router(openapi.router)
    app.openapi = lambda: openapi.describe_api(app)  # pyright: ignore[reportAttributeAccessIssue]

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        async def refuse(_: Request) -> Response:
            raise error

        return await answered(request, refuse)

    return app
