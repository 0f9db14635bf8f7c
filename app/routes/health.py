"""Liveness, readiness, version."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app import __version__
from app.routes.common import service_of
from models.skeleton import FLIP_PAIRS, KEYPOINT_NAMES, SKELETON

router = APIRouter(tags=["operations"])

DOWN: dict[int | str, dict[str, Any]] = {503: {"description": "not so, with the reason"}}


@router.get("/healthz", responses=DOWN)
async def healthz(request: Request) -> Response:
    """503 when a stage has died or is stuck, and the process should be restarted."""
    return _status(service_of(request).unhealthy())


@router.get("/readyz", responses=DOWN)
async def readyz(request: Request) -> Response:
    """503 while loading, warming or draining, and when unhealthy."""
    return _status(service_of(request).unready())


@router.get("/version")
async def version(request: Request) -> dict[str, Any]:
    """What is running, and what the keypoints are called."""
    service = service_of(request)
    return {
        "version": __version__,
        "models": service.manifest.names(),
        "device": service.device.type,
        "precision": str(service.dtype).removeprefix("torch."),
        "detector_precision": service.detector_precision,
        "keypoint_names": KEYPOINT_NAMES,
        "skeleton": SKELETON,
        "flip_pairs": FLIP_PAIRS,
    }


def _status(reason: str | None) -> Response:
    body = {"status": "ok"} if reason is None else {"status": "unavailable", "reason": reason}
    return JSONResponse(body, 200 if reason is None else 503)
