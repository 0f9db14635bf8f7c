import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from calibration.boxes import FoundPerson
from calibration.data import LabelledImage, LabelledPerson
from models.router import BOX_FEATURES, POSE_FEATURES
from training import router
from training.router import DETECTED, LABELLED, SLOPPY, Samples, boxes_of, difficulty, fit, report

FEATURES = POSE_FEATURES + BOX_FEATURES


def person(key: int, *, labelled: bool = True) -> LabelledPerson:
    keypoints = np.zeros((17, 3), dtype=np.float32)
    keypoints[:, 2] = 2 * labelled
    return LabelledPerson(key, (10.0, 20.0, 40.0, 80.0), keypoints, 1600.0, False, None)


def image(*, complete: bool) -> LabelledImage:
    return LabelledImage(7, 200, 200, "coco_x", complete, (person(1), person(2, labelled=False)), "x", None)


def samples(count: int = 5000) -> Samples:
    """The large net helps where the first feature is high; wrong boxes have a high second one."""
    random = np.random.default_rng(0)
    features = random.normal(0, 1, (count, FEATURES)).astype(np.float32)
    features[:, 5:] = 0
    wrong = features[:, 1] > 1.2
    small = random.uniform(0.5, 0.6, count)
    large = np.where(features[:, 0] > 0.3, 0.98, small)
    nothing = np.where(wrong, np.nan, 0.0)
    return Samples(
        features=features,
        kind=np.where(wrong, DETECTED, random.integers(0, 3, count)),
        wrong=wrong,
        image_id=np.arange(count),
        height=random.uniform(50, 300, count),
        score=random.uniform(0.05, 1, count),
        confidence=random.uniform(0, 1, count),
        oks_small=small + nothing,
        oks_large=large + nothing,
    )


def test_a_person_comes_with_its_own_and_a_sloppy_box_beside_those_of_the_detector() -> None:
    found = [FoundPerson(7, (0.0, 0.0, 9.0, 9.0), 0.2, None, wrong=True)]
    chosen = boxes_of(image(complete=True), found, np.random.default_rng(0))
    assert [kind for kind, _ in chosen] == [LABELLED, SLOPPY, DETECTED]
    assert chosen[0][1].bbox == (10.0, 20.0, 40.0, 80.0) != chosen[1][1].bbox
    assert chosen[1][1].label == chosen[0][1].label


def test_where_others_are_unlabelled_no_box_counts_as_wrong() -> None:
    found = [FoundPerson(7, (0.0, 0.0, 9.0, 9.0), 0.2, None, wrong=True)]
    assert [kind for kind, _ in boxes_of(image(complete=False), found, np.random.default_rng(0))] == [0, 1]


def test_the_target_is_the_gain_in_thresholds_passed_and_nothing_without_annotated_keypoints() -> None:
    few = samples(4)
    few.wrong[:] = [False, False, True, False]
    few.oks_small[:], few.oks_large[:] = [0.52, 0.93, np.nan, np.nan], [0.72, 0.71, np.nan, np.nan]
    assert few.target.tolist() == pytest.approx([0.3 + 0.4, 0.0, 0.0, 0.0])


def test_it_learns_who_gains_and_who_is_nobody() -> None:
    data = samples()
    learning, rest = np.arange(4000), np.arange(len(data.kind)) >= 4000
    result = report(difficulty(fit(data, learning, 0), data), data, rest)
    assert result["labelled_router"][1] > 0.9 > 0.7 > result["labelled_biggest_box"][1]  # type: ignore[index]
    assert result["auc_right_above_wrong"] > 0.8  # type: ignore[operator]


def test_the_same_seed_gives_the_same_head() -> None:
    data = samples(600)
    first, second = (difficulty(fit(data, np.arange(600), seed=3), data) for _ in range(2))
    assert np.array_equal(first, second)


def test_samples_are_kept_for_the_very_same_labels_alone(
    labelled_noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[int] = []

    def collect(images: list[LabelledImage], *_: object) -> Samples:
        collected.append(len(images))
        return samples(len(images))

    monkeypatch.setattr(router, "collect", collect)
    for name in ("load_detector", "load_estimator", "compile_network"):
        monkeypatch.setattr(router, name, lambda *_: None)
    options = argparse.Namespace(
        data=labelled_noise, pair="embedded", device="cpu", seed=0, limit=None, out=labelled_noise / "router"
    )
    for expected in ([5], [5]):
        assert len(router.ask(options)[0].kind) == 5
        assert collected == expected
    content = json.loads((labelled_noise / "train.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (labelled_noise / "train.json").write_text(json.dumps(content))
    router.ask(options)
    assert collected == [5, 5]


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["router", str(tmp_path)])
    router.main()
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"
