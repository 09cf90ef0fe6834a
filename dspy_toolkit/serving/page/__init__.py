"""The page at `/`, on which a program can be tried, and the description of the API at `/docs`.

Plain files, with no build step, and no request to anywhere else: the browser is told to allow none.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from dspy_toolkit.serving.edge import Route

router = APIRouter(route_class=Route)
HERE = Path(__file__).parent
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The API, for people."""
    return _file("docs.html")


@router.get("/page/{name}", include_in_schema=False)
async def file(name: str) -> Response:
    """A file of the page."""
    if Path(name).suffix not in KINDS or not (HERE / Path(name).name).is_file():
        raise HTTPException(404, "There is no such file.")
    return _file(Path(name).name)


def _file(name: str) -> Response:
    path = HERE / name
    return Response(path.read_bytes(), media_type=f"{KINDS[path.suffix]}; charset=utf-8", headers=HEADERS)
