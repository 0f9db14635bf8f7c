"""GET and PATCH /config."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.config import ConfigPatch
from app.errors import ApiError
from app.intake import read_body
from app.routes.common import TOKEN, authorise, problems, service_of
from app.service import Service

router = APIRouter(prefix="/config", tags=["operations"])

MAX_PATCH_BYTES = 64 * 1024
PATCH_TYPES = ("application/json", "application/merge-patch+json")
EXAMPLE = {
    "p": 0.5,
    "theta": 0.1,
    "mode": "tracking",
    "policy": "top",
    "min_score": 0.35,
    "flip_test": False,
    "calibration": "calibration.json",
    "thresholds": {
        "k1": 0.214031,
        "k2": None,
        "k1_lowered": False,
        "reachable": 0.5,
        "samples": 1000,
        "revision": 2043,
    },
    "realised": {"people": 1842, "large_share": 0.497},
    "version": 17,
    "source": "environment",
    "warnings": [],
}
ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": EXAMPLE}}}}
BODY = {
    "required": True,
    "content": {kind: {"schema": ConfigPatch.model_json_schema()} for kind in PATCH_TYPES},
}


@router.get("", responses=ANSWER)
async def get_config(request: Request) -> Response:
    """The settings in force (first seven members; PATCH changes them) and what they lead to."""
    return _answer(service_of(request))


@router.patch(
    "",
    responses=ANSWER | problems(400, 401, 408, 412, 413, 415, 422),
    openapi_extra={"requestBody": BODY} | TOKEN,
)
async def patch_config(request: Request) -> Response:
    """JSON Merge Patch, all or nothing. `min_score` and `flip_test` hold for requests that come after it, the others
    for requests of which nobody has been routed yet. `If-Match` guards against lost updates."""
    service = service_of(request)
    authorise(request, service.settings.admin_token)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in PATCH_TYPES:
        raise ApiError(415, "unsupported_media_type", f"send {' or '.join(PATCH_TYPES)}")
    body = await read_body(request, MAX_PATCH_BYTES, service.settings)
    if service.config.patch(body, request.headers.get("if-match")):
        service.metrics.config_changed()
    return _answer(service)


def _answer(service: Service) -> Response:
    return JSONResponse(service.config.report(), headers={"ETag": service.config.etag})
