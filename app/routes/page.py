"""GET /: the page for people, whose files lie in app/static. It is a client of the API like any other.

GET /docs: Swagger UI over the API's description, with the copy of it that the package fastapi-offline keeps up to date.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",  # may be kept, but is asked for again: a new release has the same names
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}
SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
# Its icons are in its style sheet, and pictures of answers it shows from memory.
DOCS_HEADERS = HEADERS | {
    "Content-Security-Policy": HEADERS["Content-Security-Policy"].replace(
        "img-src 'self'", "img-src 'self' data: blob:"
    )
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    media_type: str
    etag: str


def read_static(entries: Iterable[Traversable]) -> dict[str, StaticFile]:
    """Files by their names. A name that is not among them is no path to anything."""
    files = {}
    for entry in entries:
        kind = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            files[entry.name] = StaticFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return files


FILES = read_static(resources.files("app").joinpath("static").iterdir())
SWAGGER_UI_FILES = read_static(resources.files("fastapi_offline") / "static" / name for name in SWAGGER_UI)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return _answer(request, FILES["index.html"])


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    return _answer(request, FILES["docs.html"], DOCS_HEADERS)


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(request: Request, name: str) -> Response:
    file = FILES.get(name) or SWAGGER_UI_FILES.get(name)
    if file is None:
        raise HTTPException(404)
    return _answer(request, file)


def _answer(request: Request, file: StaticFile, headers: Mapping[str, str] = HEADERS) -> Response:
    headers = {**headers, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
