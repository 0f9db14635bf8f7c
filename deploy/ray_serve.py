"""The service on a Ray cluster: every stage is a Ray Serve deployment with replicas of its own.

    python -m deploy.ray_serve --large 2                 on this machine alone, with the settings of `python -m app`
    python -m deploy.ray_serve --address auto --large 8 --gpus 0.5
    serve run deploy.ray_serve:build large=2             the application for Serve's own commands

The ingress is the application of `app.main` in one replica: it decodes, routes and answers, and owns p.
"""

import argparse
import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported, which would report itself

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.main import create_app
from app.server import LINGER_S
from app.service import Service, manifest_of
from app.settings import Settings, SettingsError, load_settings
from deploy.ray_stages import STAGES, RemoteService, Replica, begin
from models.zoo import PairError

NAME = "dynpose"
"""Of the application on its cluster."""

UNBOUNDED = 100_000
"""Calls at a time to one replica: the ingress's admission bounds them, and nothing is refused in the middle."""


class OneRequestId:
    """Serve adds the request's X-Request-ID to every answer, as the application does: here goes the second."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {header for header in scope["headers"] if header[0] == b"x-request-id"}
                message["headers"] = [header for header in message["headers"] if header not in known]
            await send(message)

        await self.app(scope, receive, send_once)


def create_ingress(settings: Settings, handles: dict[str, DeploymentHandle]) -> FastAPI:
    """The application of `app.main` in front of the deployments."""
    without_networks = settings.model_copy(update={"device": "cpu", "runtime": "auto"})
    app = create_app(RemoteService(without_networks, handles))
    app.add_middleware(OneRequestId)
    return app


@serve.ingress()
class Ingress:
    """One replica, which owns p and the thresholds, admission and the metrics."""

    def __init__(self, settings: Settings, **handles: DeploymentHandle) -> None:
        begin(settings)
        self._app = create_ingress(settings, handles)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Called by Serve now and then, which starts another ingress when it raises."""
        failure = self._app.state.service.failure
        if failure is not None:
            raise RuntimeError(failure)

    async def drain(self) -> None:
        """Refuse new work. Returns once what was admitted is answered, at the latest after SHUTDOWN_GRACE_S."""
        service: Service = self._app.state.service
        service.drain()
        await asyncio.sleep(service.settings.drain_delay_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(service.settings.shutdown_grace_s):
                while service.admission.bytes:
                    await asyncio.sleep(0.05)
        await asyncio.sleep(LINGER_S)


class Scale(BaseModel):
    """How many replicas each stage gets, and what each of them takes of its node."""

    model_config = ConfigDict(extra="forbid")

    detect: PositiveInt = Field(1, description="replicas of the detector")
    score: PositiveInt = Field(1, description="replicas of the router")
    small: PositiveInt = Field(1, description="replicas of the small net")
    large: PositiveInt = Field(1, description="replicas of the large net")
    cpus: NonNegativeFloat = Field(1, description="CPUs that Ray counts for a replica, and for the ingress")
    gpus: NonNegativeFloat = Field(
        0, description="GPUs of each replica: 0.25 puts one of each stage onto one"
    )


def build(scale: Scale) -> Application:
    """The application, with the environment's settings, for `serve run` and `serve deploy`."""
    return application(load_settings(), scale)


def application(settings: Settings, scale: Scale) -> Application:
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        "max_ongoing_requests": UNBOUNDED,
        "graceful_shutdown_timeout_s": settings.shutdown_grace_s,
    }
    stages = {}
    for name in STAGES:
        stage = serve.deployment(Replica, name=name, num_replicas=getattr(scale, name), **options)
        stages[name] = stage.bind(name, settings)
    options["ray_actor_options"] = {"num_cpus": scale.cpus}
    return serve.deployment(Ingress, name="ingress", **options).bind(settings, **stages)


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, help="default: the setting PORT")
    parser.add_argument("--host", help="default: the setting HOST")
    parser.add_argument("--address", help="of a Ray cluster; default: one on this machine, for this process")
    for name, field in Scale.model_fields.items():
        parser.add_argument(f"--{name}", default=field.default, help=field.description)
    options = vars(parser.parse_args())
    try:
        settings = load_settings()
        scale = Scale(**{name: options[name] for name in Scale.model_fields})
        manifest_of(settings)  # Serve would start replicas again and again that find something wrong with it
    except (SettingsError, ValidationError, PairError) as error:
        print(f"dynpose cannot start: {error}", file=sys.stderr)
        return 1
    host, port = options["host"] or settings.host, options["port"] or settings.port
    try:
        start(options["address"], scale, host, port)
    except ConnectionError as error:
        print(f"dynpose cannot start: {options['address']}: {error}", file=sys.stderr)
        return 1
    quiet = LoggingConfig(enable_access_log=False)  # the ingress has a line for each request
    ingress = serve.run(application(settings, scale), name=NAME, logging_config=quiet)
    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):  # before, they end a wait for what the cluster may never have
        signal.signal(sig, lambda *_: stop.set())
    print(f"ready on http://{host}:{port}", flush=True)
    stop.wait()
    ingress.drain.remote().result()
    if options["address"] is None:
        serve.shutdown()
    else:
        serve.delete(NAME)  # others serve on that cluster, too
    ray.shutdown()
    return 0


def start(address: str | None, scale: Scale, host: str, port: int) -> None:
    """Join the cluster at `address`, or start one of this machine alone that counts as many CPUs as are asked for."""
    if address is None:
        replicas = sum(getattr(scale, name) for name in STAGES)
        ray.init(
            "local",
            num_cpus=math.ceil(scale.cpus * (replicas + 1)),
            include_dashboard=False,
        )
    else:
        ray.init(address)
    serve.start(
        proxy_location="EveryNode",
        http_options=HTTPOptions(host=host, port=port),
    )


if __name__ == "__main__":
    sys.exit(main())
