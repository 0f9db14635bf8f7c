"""The application: routes, errors and middleware around one `Service`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import Scope

from app import __version__, errors, tracing
from app.routes import routers
from app.service import Service

DESCRIPTION = """Finds people in pictures and returns their 17 COCO keypoints. A router scores how difficult each person
is; only the share p that profits most goes to the large network. `PATCH /config` turns p while the service runs."""


def describe(document: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The OpenAPI document with the token that routes may need, so that /docs and generated clients can send it."""

    def described() -> dict[str, Any]:
        found = document()
        found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        return found

    return described


def create_app(service: Service) -> FastAPI:
    """An application that loads `service` when it starts and closes it when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.load()), asyncio.create_task(service.watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.close()

    app = FastAPI(
        title="DynPose",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "AGPL-3.0", "identifier": "AGPL-3.0-or-later"},
        lifespan=lifespan,
        telemetry=tracing.CONFIG,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere; `routes.page` has one that does not
        redoc_url=None,
        redirect_slashes=False,  # a picture would be sent again, to whatever address and scheme the request says
    )
    app.openapi = describe(app.openapi)  # type: ignore[method-assign]
    app.state.service = service
    for router in routers:
        app.include_router(router)
    errors.install(app)

    def observe(scope: Scope, status: int, seconds: float) -> None:
        if (scope["method"], scope["path"]) == ("POST", "/pose"):
            service.metrics.request(status, seconds)

    app.add_middleware(errors.RequestId, observe=observe, draining=lambda: service.status == "draining")
    return app
