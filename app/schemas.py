"""What POST /pose takes and answers, as OpenAPI describes it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.config import finite
from app.intake import Picture, Upload
from app.pipeline import EstimatorChoice, ImageResult, Person
from app.policy import Mode, Route, Snapshot
from app.settings import Fraction
from calibration.thresholds.split import Policy
from models.skeleton import COCO

MAX_DEADLINE_MS = 600_000


class PoseQuery(BaseModel):
    """Query parameters of POST /pose; what is left out follows the service's settings."""

    model_config = ConfigDict(extra="forbid")

    p: Fraction | None = Field(None, description="share of this request's people for the large net, 0 to 1")
    estimator: EstimatorChoice = Field("auto", description="`small` and `large` skip the router")
    min_score: Fraction | None = Field(None, description="detections below this score are dropped, 0 to 1")
    max_people: Annotated[int, Field(ge=1)] | None = Field(
        None, description="keep the best-scored detections"
    )
    format: Literal["full", "coco"] = Field("full", description="`coco`: the list of keypoint results alone")
    render: Literal["overlay"] | None = Field(None, description="answer with the picture, skeletons drawn in")
    deadline_ms: Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None = Field(
        None, description="answer 504 after so many milliseconds"
    )


class PersonAnswer(BaseModel):
    """One person. Coordinates are pixels of the upright picture."""

    bbox: list[float] = Field(description="x, y, width, height")
    bbox_score: float
    keypoints: list[list[float]] = Field(
        description="17 rows x, y, score in COCO's order (GET /version names them)"
    )
    score: float = Field(description="bbox_score x mean keypoint score over 0.2")
    route: Route | None = Field(description="null with a forced estimator")
    estimator: Literal["small", "large"]
    difficulty: float = Field(0.0, description="the router's score; absent with a forced estimator")


class ImageError(BaseModel):
    code: str
    detail: str


class ImageAnswer(BaseModel):
    """One picture: its people, or `error`."""

    index: int
    name: str | None
    width: int = 0
    height: int = 0
    people: list[PersonAnswer] = Field([], description="in falling order of score")
    routes: dict[Route, int] = {}
    truncated: bool = Field(False, description="more people were found than max_people")
    error: ImageError | None = Field(None, description="in place of the rest, for a bad picture among others")


class SplitAnswer(BaseModel):
    """The split that routed all people of this request. Infinite thresholds are null."""

    p: float
    k1: float | None
    k2: float | None
    mode: Mode
    policy: Policy
    version: int
    revision: int


class PoseAnswer(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "0f7c1d2ab84e4f6f9d1e",
                    "models": {
                        "pair": "embedded",
                        "detector": "yolov8s-light-512-1b3a8eb1",
                        "router": "router-6e73fe8c",
                        "small": "tinypose-96x128-f685cc3a",
                        "large": "tinypose-two-scale-288x384-be127a12",
                    },
                    "split": {
                        "p": 0.5,
                        "k1": 0.214031,
                        "k2": None,
                        "mode": "tracking",
                        "policy": "top",
                        "version": 1,
                        "revision": 12,
                    },
                    "images": [
                        {
                            "index": 0,
                            "name": "bus.jpg",
                            "width": 810,
                            "height": 1080,
                            "people": [
                                {
                                    "bbox": [48.1, 398.0, 197.2, 505.6],
                                    "bbox_score": 0.91,
                                    "keypoints": [[142.7, 441.8, 0.97]] * 17,
                                    "score": 0.83,
                                    "route": "hard",
                                    "estimator": "large",
                                    "difficulty": 0.442,
                                }
                            ],
                            "routes": {"easy": 0, "hard": 1, "extremely_hard": 0},
                            "truncated": False,
                        }
                    ],
                    "timing_ms": {
                        "decode": 6.1,
                        "detect": 38.0,
                        "score": 1.2,
                        "estimate": 21.4,
                        "queued": 2.0,
                        "total": 69.3,
                    },
                }
            ]
        }
    )

    request_id: str
    models: dict[str, str]
    split: SplitAnswer
    images: list[ImageAnswer]
    timing_ms: dict[str, float] = Field(
        description="stages: time in which a batch ran that held this request; `score` has the small net's part in it "
        "where the router has run that net, as the bundled one does"
    )


class CocoResult(BaseModel):
    """A person as `format=coco` has it."""

    image_id: int | str
    category_id: Literal[1]
    bbox: list[float] = Field(description="x, y, width, height")
    keypoints: list[float] = Field(description="17 times x, y, score")
    score: float


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is for programs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "detail": "the picture is cut off or damaged",
                    "code": "invalid_image",
                    "request_id": "0f7c1d2ab84e4f6f9d1e",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


def image_answer(index: int, picture: Picture, result: ImageResult) -> ImageAnswer:
    """2 decimals for coordinates, 6 for scores."""
    keypoints = _rounded(result.people).tolist()
    routes = dict.fromkeys(Route, 0)
    for person in result.people:
        if person.route is not None:
            routes[person.route] += 1
    return ImageAnswer(
        index=index,
        name=picture.name,
        width=picture.width,
        height=picture.height,
        people=[_person_answer(*one) for one in zip(result.people, keypoints, strict=True)],
        routes=routes,
        truncated=result.truncated,
    )


def error_answer(index: int, upload: Upload, code: str, detail: str) -> ImageAnswer:
    return ImageAnswer(index=index, name=upload.name, error=ImageError(code=code, detail=detail))


def _rounded(people: Sequence[Person]) -> NDArray[np.float64]:
    """The keypoints of all, (N, 17, 3), at once: Python would take longer to round than to do all the rest."""
    values = np.array([person.keypoints for person in people], np.float64)
    keypoints = values.reshape(-1, len(COCO.keypoints), 3)  # also of nobody
    return np.concatenate((keypoints[:, :, :2].round(2), keypoints[:, :, 2:].round(6)), axis=2)


def _person_answer(person: Person, keypoints: list[list[float]]) -> PersonAnswer:
    answer: dict[str, Any] = {
        "bbox": [round(value, 2) for value in person.bbox],
        "bbox_score": round(person.bbox_score, 6),
        "keypoints": keypoints,
        "score": round(person.score, 6),
        "route": person.route,
        "estimator": person.estimator,
    }
    if person.difficulty is not None:
        answer["difficulty"] = round(person.difficulty, 6)
    return PersonAnswer(**answer)


def split_answer(split: Snapshot) -> SplitAnswer:
    return SplitAnswer(
        p=split.p,
        k1=finite(split.k1),
        k2=finite(split.k2),
        mode=split.mode,
        policy=split.policy,
        version=split.version,
        revision=split.revision,
    )


def coco_results(pictures: list[tuple[int | str, ImageResult]]) -> list[dict[str, Any]]:
    """COCO keypoint results of (image_id, result) pairs, as pycocotools reads them."""
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "bbox": [round(value, 2) for value in person.bbox],
            "keypoints": keypoints.flatten().tolist(),
            "score": round(person.score, 6),
        }
        for image_id, result in pictures
        for person, keypoints in zip(result.people, _rounded(result.people), strict=True)
    ]
