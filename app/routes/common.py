"""What several routes need."""

import hmac
from typing import Any

from fastapi import Request
from pydantic import SecretStr

from app.errors import ApiError
from app.schemas import Problem
from app.service import Service

TOKEN: dict[str, Any] = {"security": [{"bearer": []}, {}]}
"""OpenAPI of a route that takes a token, where one is set."""


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def authorise(request: Request, token: SecretStr | None) -> None:
    """Raises ApiError 401 unless `Authorization: Bearer` carries `token`; passes when none is set."""
    if token is None:
        return
    given = request.headers.get("authorization", "")
    wanted = f"Bearer {token.get_secret_value()}"
    if not hmac.compare_digest(given.encode(), wanted.encode()):
        detail = "this needs Authorization: Bearer with the right token"
        raise ApiError(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the error answers of a route."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    meanings = {
        400: "broken body",
        401: "missing or wrong token",
        408: "the body took too long",
        412: "If-Match does not match",
        413: "over a limit",
        415: "type not taken",
        422: "invalid picture, box or parameter",
        429: "no room now, see Retry-After",
        500: "the work failed twice, or a part of the service has died",
        503: "not ready, or draining",
        504: "the deadline passed",
    }
    return {
        status: {"description": meanings[status], "model": Problem, "content": content} for status in statuses
    }
