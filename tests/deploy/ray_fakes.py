"""What stands in a Ray cluster for the networks and for the ingress of `deploy.ray_serve`, so that a test begins with a
service of its own without processes of its own. A test's wishes for the networks travel in a file."""

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle
from starlette.types import Receive, Scope, Send
from torch import Tensor

from app.batching import Observer, Stage
from app.service import build_stages
from app.settings import Settings
from deploy.ray_serve import create_ingress
from tests.app.conftest import FakePair


class RemotePair(FakePair):
    """Takes over what the file says whenever it has changed."""

    def __init__(self, wishes: Path) -> None:
        super().__init__(None)
        self._wishes = wishes
        self._seen = b""

    def _enter(self, stage: str, pictures: list[Tensor]) -> None:
        text = self._wishes.read_bytes()
        if text != self._seen:
            self._seen = text
            self.__dict__.update(cloudpickle.loads(text))
        super()._enter(stage, pictures)


class Wishes:
    """The test's end: what it sets here, the networks take over."""

    def __init__(self, file: Path) -> None:
        self.__dict__.update(file=file, faults=Faults(self._write))
        self._write()

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value
        self._write()

    def _write(self) -> None:
        unwished = dict.fromkeys(("nan_at", "difficulty_nan_at", "faint_at"), -1.0)
        unwished |= {"peaks": [0.8] * 17, "small_in_router": False}
        values = unwished | {"told": time.monotonic_ns()} | self.__dict__
        values["faults"] = dict(values["faults"])
        del values["file"]
        whole = self.file.with_suffix(".new")
        whole.write_bytes(cloudpickle.dumps(values))
        whole.replace(self.file)


class Faults(dict[str, Callable[[list[Tensor]], None]]):
    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, stage: str, fault: Callable[[list[Tensor]], None]) -> None:
        super().__setitem__(stage, fault)
        self._changed()

    def clear(self) -> None:
        super().clear()
        self._changed()


class Loader:
    """`deploy.ray_serve.load_stage` for networks that are arithmetic."""

    def __init__(self, wishes: Path) -> None:
        self.wishes = wishes

    def __call__(self, name: str, settings: Settings, observer: Observer) -> Stage:
        stages = build_stages(
            RemotePair(self.wishes), observer, settings.max_passed_over_ms / 1000, at_once=1
        )
        return next(stage for stage in stages if stage.name == name)


@serve.ingress()
class FreshIngress:
    """An ingress that begins anew when it is told to, with other settings."""

    def __init__(self, **handles: DeploymentHandle) -> None:
        self.handles = handles
        self.running = AsyncExitStack()
        self.current: FastAPI | None = None

    async def begin(self, settings: Settings) -> int:
        """Returns the process's id."""
        await self.running.aclose()
        app = create_ingress(settings, self.handles)
        await self.running.enter_async_context(app.router.lifespan_context(app))
        self.current = app
        return os.getpid()

    def __serve_build_asgi_app__(self) -> Callable[..., Any]:
        async def forward(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await self.running.aclose()
                return await send({"type": "lifespan.shutdown.complete"})
            assert self.current is not None
            await self.current(scope, receive, send)

        return forward
