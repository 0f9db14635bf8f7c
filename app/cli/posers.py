"""Two ways to the people of a picture: the service's own stages in this process, or a running server."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

import cv2
import numpy as np
from pydantic import ValidationError
from torch import Tensor

from app.batching import Ticket
from app.cli.client import Client, Refused, ServerError
from app.cli.ledger import result_of
from app.config import ConfigError
from app.decode import decode
from app.errors import ApiError, to_api_error
from app.intake import Picture, Upload, examine, to_picture
from app.pipeline import ImageResult, PoseRequest
from app.routes.pose import options_of
from app.schemas import ImageAnswer, PoseAnswer, PoseQuery, image_answer
from app.service import Service
from app.settings import SettingsError, load_settings
from models.album import to_device
from models.zoo import PairError

FRAME_QUALITY = 95
"""JPEG quality in which a video's frames go to a server."""


class CannotPose(Exception):
    """The networks or the server cannot be used at all; one line says why."""


class PictureError(Exception):
    """This picture has no result; one line says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """pixels: (H, W, 3) uint8 RGB on the CPU, upright. answer: as POST /pose has it."""

    pixels: Tensor
    answer: ImageAnswer
    result: ImageResult


class Poser(Protocol):
    """models: what `/version` calls the networks. settings: what else decides on the results, as far as it does not
    change while pictures come. Raises PictureError for one picture, CannotPose for all."""

    models: dict[str, str]
    settings: dict[str, object]

    async def picture(self, data: bytes) -> Found:
        """Of an encoded picture."""

    async def frame(self, pixels: Tensor) -> Found:
        """Of (H, W, 3) uint8 RGB."""


class InProcess:
    """The service without HTTP, with settings from the environment and .env, and the query's in their place."""

    def __init__(self, query: PoseQuery) -> None:
        try:
            self._service = Service(load_settings())
        except (SettingsError, PairError, ConfigError, ValueError) as error:
            raise CannotPose(str(error)) from error
        if query.p is not None:
            # As the service's p and not as a request's, so that over all pictures the share is kept.
            live = self._service.config.live
            self._service.config.policy.configure(
                p=query.p, theta=live.theta, mode=live.mode, policy=live.policy
            )
        self._options = options_of(query.model_copy(update={"p": None}), self._service)
        self._starting = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self.models = self._service.manifest.names()
        self.settings = asdict(self._service.config.live) | {
            "p": self._service.config.policy.snapshot.p,
            "min_score": self._options.min_score,
            "max_people": self._options.max_people,
        }

    async def picture(self, data: bytes) -> Found:
        upload = Upload(data)
        try:
            examine(upload, self._service.settings)
            return await self._pose(await self._service.in_thread(to_picture, upload, self._service.device))
        except ApiError as error:
            raise PictureError(error.detail) from error

    async def frame(self, pixels: Tensor) -> Found:
        height, width, _ = pixels.shape
        return await self._pose(Picture(to_device(pixels, self._service.device), None, width, height))

    async def _start(self) -> None:
        """Load the networks when the first picture needs them: pictures that are damaged do not."""
        async with self._starting:
            if self._watch is None:
                await self._service.load()
                if self._service.failure is not None:
                    raise CannotPose(self._service.failure)
                self._watch = asyncio.create_task(self._service.watch())

    async def _pose(self, picture: Picture) -> Found:
        await self._start()
        ticket = Ticket("annotate", math.inf)
        try:
            result = await self._service.ready_pipeline().pose(
                picture, None, PoseRequest(ticket, self._options)
            )
        except Exception as error:
            if reason := self._service.unhealthy():
                raise CannotPose(reason) from error
            raise PictureError(to_api_error(error).detail) from error
        finally:
            ticket.cancel()
        return Found(picture.pixels.cpu(), image_answer(0, picture, result), result)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._service.close()


class Remote:
    """A running server. Pictures are drawn here, from its answer: it is asked once for each."""

    def __init__(
        self, client: Client, query: PoseQuery, models: dict[str, str], config: Mapping[str, object]
    ) -> None:
        self._client = client
        self._query = {name: str(value) for name, value in query.model_dump(exclude_defaults=True).items()}
        self.models = models
        self.settings = {
            "p": query.p,
            "min_score": config.get("min_score") if query.min_score is None else query.min_score,
            "flip_test": config.get("flip_test"),
        }

    async def picture(self, data: bytes) -> Found:
        answer = await self._ask(data)
        try:
            pixels = await asyncio.to_thread(decode, data)
        except ApiError as error:
            raise PictureError(error.detail) from error
        return Found(pixels, answer, result_of(answer.people))

    async def frame(self, pixels: Tensor) -> Found:
        answer = await self._ask(await asyncio.to_thread(_jpeg, pixels))
        return Found(pixels, answer, result_of(answer.people))

    async def _ask(self, data: bytes) -> ImageAnswer:
        try:
            body = await self._client.pose(data, self._query)
            return PoseAnswer.model_validate_json(body).images[0]
        except Refused as error:
            raise PictureError(str(error)) from error
        except (ValidationError, IndexError) as error:
            raise ServerError(f"{self._client.url}: its answers are not those of a DynPose server") from error


@asynccontextmanager
async def poser(server: str | None, token: str | None, query: PoseQuery) -> AsyncIterator[Poser]:
    """The server's, or without one that of this process. Raises CannotPose and ServerError."""
    if server is None:
        local = InProcess(query)
        try:
            yield local
        finally:
            await local.close()
    else:
        async with Client(server, token) as client:
            version = await client.version()
            yield Remote(client, query, dict(version["models"]), await client.config())


def _jpeg(pixels: Tensor) -> bytes:
    bgr = np.ascontiguousarray(pixels.numpy()[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, FRAME_QUALITY])
    return encoded.tobytes()
