from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor

import models
from benchmarks.servers import naive
from benchmarks.stages import NETS, SIZES, Given, Stages, batches, best_batches, given, main

CALIBRATION = Path(models.__file__).parent / "weights" / "calibration.json"


class FakePair:
    """Finds as many people as a picture's first pixel says, from left to right, the one on the left the hardest. Nets
    answer with the left edge of the box, and a score that says which of them it was."""

    device = torch.device("cpu")
    manifest = SimpleNamespace(calibration_path=CALIBRATION)

    def __init__(self, small_in_router: bool = False) -> None:
        self.small_in_router = small_in_router
        self.asked: list[tuple[str, int]] = []

    def detector(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        assert len({picture.shape for picture in pictures}) == len(pictures[:1]) == len(min_scores[:1])
        self.asked.append(("detect", len(pictures)))
        return [
            torch.tensor([[float(n), 0, 10, 20, 0.9] for n in range(int(picture[0, 0, 0]))]).reshape(-1, 5)
            for picture in pictures
        ]

    @property
    def router(self) -> "FakePair":
        return self

    def with_keypoints(
        self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        assert len(pictures) == len(boxes) == len(scores)
        self.asked.append(("score", len(boxes)))
        known = torch.tensor([0.0, 0, 0.1]).repeat(len(boxes), 17, 1) if self.small_in_router else None
        if known is not None:
            known[:, :, 0] = boxes[:, :1]
        return 1 - boxes[:, 0] / 100, known

    def small(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return self._points("small", pictures, boxes, 0.1)

    def large(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return self._points("large", pictures, boxes, 0.9)

    def _points(self, name: str, pictures: Sequence[Tensor], boxes: Tensor, score: float) -> Tensor:
        assert len(pictures) == len(boxes)
        self.asked.append((name, len(boxes)))
        return torch.stack([torch.tensor([[float(box[0]), 0, score]] * 17) for box in boxes])


def fake_pair(small_in_router: bool = False) -> Any:
    return FakePair(small_in_router)


def picture(people: int, *shape: int) -> Tensor:
    return torch.full((*shape, 3), people, dtype=torch.uint8)


@pytest.mark.parametrize("small_in_router", [False, True])
@pytest.mark.parametrize(("p", "score"), [(0.0, 0.1), (1.0, 0.9)])
def test_every_picture_gets_its_own_people_back_whatever_runs_together(
    p: float, score: float, small_in_router: bool
) -> None:
    stages = Stages(fake_pair(small_in_router), p, dict.fromkeys(NETS, 2))
    counts = [(1, 30, 40), (0, 20, 20), (3, 20, 20), (2, 30, 40)]
    answers = stages.poses([picture(*each) for each in sorted(counts, key=lambda each: each[1])])
    found = [len(boxes) for boxes, _ in answers]
    assert found == [0, 3, 1, 2]
    for boxes, keypoints in answers:
        assert [float(points[0, 0]) for points in keypoints] == boxes[:, 0].tolist()
        assert all(float(points[0, 2]) == pytest.approx(score) for points in keypoints)
    nets = {"detect", "score", "large" if p else "small"}
    assert set(stages.seconds) == nets - ({"small"} if small_in_router else set())


def test_batches_of_each_net_are_as_large_as_wanted() -> None:
    fake = fake_pair()
    Stages(fake, 1.0, {"detect": 2, "score": 5, "small": 1, "large": 3}).poses([picture(2, 20, 20)] * 4)
    assert fake.asked == [("detect", 2)] * 2 + [("score", 5), ("score", 3)] + [
        ("large", 3),
        ("large", 3),
        ("large", 2),
    ]


def test_batches_keep_order_and_leave_nothing_out() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


def encoded(people: int) -> Any:
    _, png = cv2.imencode(".png", np.full((20, 20, 3), people, np.uint8))
    return png.tobytes()


def posts(*people: int) -> Any:
    from benchmarks.pictures import Post

    return [Post(str(count), encoded(count)) for count in people]


def test_the_best_batch_of_each_net_is_one_of_those_tried() -> None:
    fake = fake_pair()
    best = best_batches(fake, posts(3, 3), rounds=1)
    assert set(best) == set(NETS)
    assert set(best.values()) <= set(SIZES)
    assert {size for name, size in fake.asked if name == "large"} >= {1, 2, 4, 6}


def test_routing_is_priced_on_the_same_people_in_turn() -> None:
    fake = fake_pair()
    measured = given(fake, posts(4, 2), {"score": 6, "small": 4, "large": 3}, rounds=3)
    assert measured.people == 6
    assert {("score", 6), ("small", 4), ("large", 3)} <= set(fake.asked)  # each in batches of its own
    assert {name: len(each) for name, each in measured.ms.items()} == dict.fromkeys(
        ("router", "small", "large", "routed"), 3
    )


def test_a_pair_whose_router_has_the_small_net_in_it_is_priced_without_it() -> None:
    fake = fake_pair(small_in_router=True)
    measured = given(fake, posts(4, 2), dict.fromkeys(NETS, 2), rounds=3)
    assert measured.small_in_router
    assert fake.asked.count(("small", 2)) == 3 * 3  # alone, and not when routed


def test_the_routed_pair_is_held_against_its_parts_round_by_round() -> None:
    ms = {"router": [1.0, 1, 1], "small": [4.0, 4, 4], "large": [20.0, 40, 20], "routed": [26.0, 23, 13]}
    assert Given(6, ms).over_ideal == pytest.approx(1.0)
    assert Given(6, ms, small_in_router=True).over_ideal == pytest.approx(13 / 11)
    assert "at p = 0.5 0.87 times" in str(Given(6, ms))


def test_the_naive_server_asks_the_large_net_for_one_person_at_a_time() -> None:
    fake = fake_pair()
    answer = TestClient(naive.create_app(fake)).post("/pose", content=encoded(3))
    people = answer.json()["images"][0]["people"]
    assert [person["bbox"][0] for person in people] == [0, 1, 2]
    assert [len(person["keypoints"]) for person in people] == [17] * 3
    assert fake.asked == [("detect", 1)] + [("large", 1)] * 3


def test_without_pictures_the_stages_are_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 0
    assert "skipped: needs pictures with people in" in capsys.readouterr().out
