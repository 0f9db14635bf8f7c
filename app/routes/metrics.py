"""GET /metrics."""

from fastapi import APIRouter, Request, Response

from app.routes.common import service_of

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics when `Accept` asks for it."""
    body, content_type = service_of(request).metrics.render(request.headers.get("accept"))
    return Response(body, media_type=content_type)
