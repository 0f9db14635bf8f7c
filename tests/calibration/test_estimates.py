from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from calibration.boxes import Bbox, FoundPerson, labelled_boxes
from calibration.data import LabelledImage, LabelledPerson, Pictures, read_split
from calibration.estimates import (
    Costs,
    Estimates,
    Matcher,
    estimate,
    mirrored,
    oks_gain,
    padded_area,
    similarity,
)
from models.skeleton import COCO
from models.zoo import Pair

BBOX = (10.0, 10.0, 40.0, 80.0)
PIXELS = 12 * 16
FAR_OFF = 1000.0


def labelled(key: int, bbox: Bbox, keypoints: np.ndarray) -> LabelledPerson:
    return LabelledPerson(key, bbox, keypoints, bbox[2] * bbox[3] / 2, False, None)


def picture_of(*people: LabelledPerson, key: int = 1) -> LabelledImage:
    return LabelledImage(key, 400, 400, "coco_x", True, people, "x", None)


def nobodies(count: int, *, image_id: int = 1) -> Estimates:
    """Boxes of nobody; both nets' points tell box and net apart."""
    found = [FoundPerson(image_id, BBOX, (row + 1) / 10, None) for row in range(count)]
    small = np.arange(count)[:, None, None] + np.ones((count, 17, 3))
    return Estimates(found, small, -small, np.arange(count) / 10)


def test_boxes_keep_their_own_estimates_whatever_the_batch(data: Path, pair: Pair) -> None:
    images = read_split(data, "val")
    found = [*labelled_boxes(images), FoundPerson(1, (9, 8, 64, 30), 0.5, None)]
    estimates = estimate(pair, Pictures(data), images, found, batch=3)
    assert estimates.found == found
    assert estimates.difficulty.tolist() == [0.125, 0.25, 0.375, 0.5, 0.25]
    assert estimates.large[:, 0].tolist() == [[3, 4, 1]] * 4 + [[9, 8, 1]]
    assert estimates.small[:, 0].tolist() == [[1003, 1004, 1]] * 4 + [[1009, 1008, 1]]
    assert all(seconds > 0 for seconds in estimates.costs.seconds.values())


def test_other_routers_score_the_same_boxes(data: Path, pair: Pair) -> None:
    images = read_split(data, "val")

    def height(pictures: list[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:
        assert len(pictures) == len(scores)
        return boxes[:, 3] / 100

    found = [*labelled_boxes(images), FoundPerson(1, (9, 8, 64, 50), 0.5, None)]
    estimates = estimate(pair, Pictures(data), images, found, batch=2, others={"height": height})  # type: ignore[dict-item]
    assert estimates.others["height"] == pytest.approx([0.3] * 4 + [0.5])
    assert estimates.take(np.array([4])).others["height"] == pytest.approx([0.5])


def test_the_flip_test_is_for_both_nets_and_not_for_the_mirrored_crops(data: Path, pair: Pair) -> None:
    images = read_split(data, "val")
    estimate(pair, Pictures(data), images, labelled_boxes(images), flip_test=True)
    # the first batch goes through each net twice
    assert (pair.small.flips, pair.large.flips) == ([True, True, False], [True, True])  # type: ignore[attr-defined]
    estimate(pair, Pictures(data), images, labelled_boxes(images))
    assert pair.small.flips[3:] == [False, False, False]  # type: ignore[attr-defined]


def test_what_a_net_needs_before_its_first_answer_is_not_timed(
    data: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For batches of any size that come: a last, smaller one may take another network."""
    clock = [0.0]
    asked: list[int] = []
    answer = pair.large

    def slow(pictures: list[Tensor], boxes: Tensor, *, flip_test: bool) -> Tensor:
        clock[0] += len(boxes) * (2 if len(boxes) in asked else 100)
        asked.append(len(boxes))
        return answer(pictures, boxes, flip_test=flip_test)

    monkeypatch.setattr(pair, "large", slow)
    monkeypatch.setattr("calibration.estimates.time.perf_counter", lambda: clock[0])
    images = read_split(data, "val")
    estimates = estimate(pair, Pictures(data), images, labelled_boxes(images), batch=3)
    assert sorted(asked[:2]) == [1, 3]
    assert asked[2:] == [3, 1]
    assert estimates.costs.seconds == {"router": 0, "small": 0, "large": 2}


class ColumnNet:
    """Finds the only white column of the box and puts there all right joints; the left ones lie on its right edge."""

    def __call__(self, pictures: list[Tensor], boxes: Tensor) -> Tensor:
        poses = torch.ones(len(boxes), 17, 3)
        for pose, picture, (x, _, w, _) in zip(poses, pictures, boxes.tolist(), strict=True):
            columns = picture[0, round(x) : round(x + w) + 1, 0].nonzero()
            assert len(columns) == 1
            pose[:, 0] = columns[0] + round(x)
            pose[1::2, 0] = x + w
        return poses


@given(
    width=st.integers(30, 60),
    boxes=st.lists(st.tuples(st.integers(0, 12), st.integers(4, 16)), min_size=1, max_size=4),
)
def test_mirrored_estimates_lie_in_the_picture_with_left_and_right_as_they_are(
    width: int, boxes: list[tuple[int, int]]
) -> None:
    """A net that does not know left from right: mirrored back, what it calls left is the right."""
    pictures = []
    for x, w in boxes:
        picture = torch.zeros(5, width, 3, dtype=torch.uint8)
        picture[:, x + w // 3] = 255
        pictures.append(picture)
    pair = type("Pair", (), {"small": ColumnNet()})
    answer = mirrored(pair, pictures, torch.tensor([[x, 0, w, 5] for x, w in boxes], dtype=torch.float32))  # type: ignore[arg-type]
    left = [index for index, name in enumerate(COCO.keypoints) if name.startswith("left")]
    right = [index for index, name in enumerate(COCO.keypoints) if name.startswith("right")]
    for pose, (x, w) in zip(answer, boxes, strict=True):
        assert pose[0, 0] == x + w // 3
        assert (pose[left, 0] == x + w // 3).all()
        assert (pose[right, 0] == x).all()
        assert (pose[:, 1:] == 1).all()


def test_multiply_accumulates_of_the_nets_count_twice_with_the_flip_test(data: Path, pair: Pair) -> None:
    images = read_split(data, "val")
    macs = {"router": 3.0, "small": 6.0, "large": 30.0}
    for flip_test, factor in ((False, 1), (True, 2)):
        estimates = estimate(
            pair, Pictures(data), images, labelled_boxes(images), flip_test=flip_test, macs=macs
        )
        assert estimates.costs.macs == {"router": 3, "small": 6 * factor, "large": 30 * factor}
        assert estimates.costs.flip_test == flip_test


def test_the_cost_of_a_person_is_the_routers_and_by_share_that_of_the_nets() -> None:
    costs = Costs({"router": 1, "small": 10, "large": 50}, {"router": 0.25, "small": 0.5, "large": 1.5})
    assert costs.macs_at(0.25) == 1 + 7.5 + 12.5
    assert costs.people_per_second(0.25) == pytest.approx(1)
    assert costs.people_per_second(0) == pytest.approx(1 / 0.75)


def test_a_small_net_that_the_router_has_in_it_costs_nothing_more() -> None:
    macs, seconds = {"router": 1.0, "small": 10, "large": 50}, {"router": 0.25, "small": 0.5, "large": 1.5}
    costs = Costs(macs, seconds, small_in_router=True)
    assert costs.macs_at(0.25) == 1 + 12.5
    assert costs.people_per_second(0) == pytest.approx(4)


def test_those_of_the_mask_get_the_large_net() -> None:
    routed = nobodies(3).routed(np.array([False, True, False]))
    assert routed[:, 0, 0].tolist() == [1, -2, 3]


@pytest.mark.parametrize("rows", [np.array([2, 0]), np.array([True, False, True])])
def test_some_boxes_keep_everything_of_theirs(rows: np.ndarray) -> None:
    estimates = nobodies(3)
    part = estimates.take(rows)
    expected = np.arange(3)[rows]
    assert [person.score for person in part.found] == ((expected + 1) / 10).tolist()
    assert part.small[:, 0, 0].tolist() == (expected + 1).tolist()
    assert part.large[:, 0, 0].tolist() == (-expected - 1).tolist()
    assert part.difficulty.tolist() == (expected / 10).tolist()
    assert part.small_flipped is None


@pytest.mark.parametrize(("bbox", "area"), [((5, 5, 30, 80), 75 * 100), ((5, 5, 75, 10), 93.75 * 125)])
def test_a_crop_is_the_box_grown_to_three_by_four_and_by_a_quarter(bbox: Bbox, area: float) -> None:
    assert padded_area(bbox) == pytest.approx(area)


def test_the_oks_gain_is_that_of_the_labelled_person_and_nothing_without_one() -> None:
    points = np.tile((20.0, 30.0, 2.0), (17, 1))
    people = [
        labelled(1, BBOX, points),
        None,
        labelled(2, BBOX, np.zeros((17, 3))),
        labelled(3, BBOX, points),
    ]
    near, far = points[None].repeat(4, 0), points[None].repeat(4, 0) + 1000
    small, large = far.copy(), near.copy()
    small[3], large[3] = near[3], far[3]
    found = [FoundPerson(1, BBOX, 1.0, p) for p in people]
    assert oks_gain(Estimates(found, small, large, np.zeros(4))) == pytest.approx([1, 0, 0, -1])
    assert similarity(large, found) == pytest.approx([1, np.nan, np.nan, 0], nan_ok=True)


def test_people_of_fourteen_keypoints_have_the_spread_of_their_own_joints() -> None:
    """A CrowdPose shoulder 4 px off in 1600 square pixels: exp(-16 / (2 * 1600 * (2 * 0.079)^2))."""
    points = np.tile((20.0, 30.0, 0.0), (14, 1))
    points[0, 2] = 2
    moved = points[None] + np.array([4.0, 0, 0])
    person = FoundPerson(1, BBOX, 1.0, labelled(1, BBOX, points))
    assert similarity(moved, [person]) == pytest.approx([np.exp(-16 / (2 * 1600 * (2 * 0.079) ** 2))])


def exact(*scores: float, image_id: int = 1) -> tuple[LabelledImage, Estimates]:
    """One labelled person, found exactly by the large net and far off by the small one, in boxes of these scores."""
    points = np.concatenate((np.random.default_rng(0).uniform(10, 50, (17, 2)), np.ones((17, 1))), axis=1)
    found = [FoundPerson(image_id, BBOX, score, None) for score in scores]
    large = points[None].repeat(len(scores), 0)
    image = picture_of(labelled(1, BBOX, points), key=image_id)
    return image, Estimates(found, large + np.array([FAR_OFF, 0, 0]), large, np.zeros(len(scores)))


def test_a_pose_found_twice_is_counted_once() -> None:
    pytest.importorskip("pycocotools")
    image, estimates = exact(0.5, 0.75)
    (matches,) = Matcher([image], estimates)(np.array([True, True]))
    assert matches.scores.tolist() == [0.75]
    assert matches.right.all()


def test_boxes_of_other_pictures_are_left_out() -> None:
    pytest.importorskip("pycocotools")
    image, estimates = exact(0.5, image_id=1)
    matcher = Matcher([picture_of(*image.people, key=2)], estimates)
    (matches,) = matcher(np.array([True]))
    assert (matches.scores.tolist(), matches.labelled) == ([], 1)


def test_a_picture_is_matched_anew_only_when_somebody_in_it_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pycocotools")
    from calibration import estimates as module

    matched: list[int] = []
    original = module.match

    def counting(images, *others):
        matched.extend(image.id for image in images)
        return original(images, *others)

    monkeypatch.setattr(module, "match", counting)
    first, one = exact(0.5, image_id=1)
    second, two = exact(0.5, image_id=2)
    both = Estimates(
        [*one.found, *two.found],
        np.concatenate((one.small, two.small)),
        np.concatenate((one.large, two.large)),
        np.zeros(2),
    )
    matcher = Matcher([first, second], both)

    def right(*to_large: bool, dropped: np.ndarray | None = None) -> list[list[bool]]:
        return [m.right[0].tolist() for m in matcher(np.array(to_large), dropped)]

    assert right(True, False) == [[True], [False]]
    assert right(False, False) == [[False], [False]]
    assert right(True, False) == [[True], [False]]
    assert matched == [1, 2, 1]
    assert right(True, False, dropped=np.array([False, True])) == [[True], []]
    assert matched == [1, 2, 1, 2]


def test_people_of_another_size_do_not_count() -> None:
    pytest.importorskip("pycocotools")
    image, estimates = exact(0.5)  # an area of 1600: medium
    for area, found in (("medium", 1), ("large", 0)):
        (matches,) = Matcher([image], estimates, area)(np.array([True]))  # type: ignore[arg-type]
        assert (matches.labelled, int(matches.right.any())) == (found, found)
        assert not matches.wrong.any()
