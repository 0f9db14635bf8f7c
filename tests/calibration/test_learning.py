import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import learning
from calibration.learning import BATCHED, PAPER, lesson, loss_of, optimisation, train, validation
from calibration.okd import RECOMMENDED, RELEASED, Reading, oks
from calibration.samples import LABELLED, SLOPPY, WRONG, Samples, SamplesError
from models.router import Router, RouterConfig

CASES = json.loads((Path(__file__).parent.parent / "data" / "okd.json").read_text())
CPU = torch.device("cpu")


def samples(n: int, **columns: np.ndarray) -> Samples:
    """People whose keypoints the small net has `small_off` pixels too far to the right and the large `large_off`."""
    small_off, large_off = (np.asarray(columns.pop(name, 0.0)) for name in ("small_off", "large_off"))
    truth = np.full((n, 17, 3), 100.0)
    small, large = (truth[:, :, :2].copy() for _ in range(2))
    small[:, :, 0] += small_off[..., None]
    large[:, :, 0] += large_off[..., None]
    defaults = {
        "crops": np.zeros((n, 256, 192, 3), np.uint8),
        "kind": np.full(n, LABELLED),
        "held_back": np.zeros(n, bool),
        "image_id": np.arange(n),
        "height": np.arange(n, dtype=float),
        "truth": truth,
        "area": np.full(n, 20000.0),
        "small": small,
        "large": large,
    }
    return Samples(**(defaults | columns))


def noise(n: int, **columns: np.ndarray) -> Samples:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (n, 256, 192, 3), dtype=np.uint8)
    offs = {"small_off": rng.uniform(10, 30, n), "large_off": rng.uniform(5, 10, n)}
    return samples(n, crops=crops, **(offs | columns))


def test_the_target_is_the_share_of_the_error_that_the_large_net_removes():
    found = lesson(samples(3, small_off=[20, 20, 10], large_off=[15, 25, 10]), Reading(oks_filter=None))
    assert found.target == pytest.approx([0.25, -0.25, 0])
    assert found.weight.tolist() == [1, 1, 1]
    clamped = lesson(samples(2, small_off=[20, 20], large_off=[15, 25]), Reading(oks_filter=None, clamp=True))
    assert clamped.target == pytest.approx([0.25, 0])


def test_people_outside_the_filter_and_without_an_error_do_not_count():
    # OKS with the crop's area: 8 px 0.93, 10 px 0.89, 20 px 0.69, 40 px 0.38; with 4000 px: 0.55, 0.45, 0.12, 0.00.
    offs = {"small_off": [10, 20, 40, 0], "large_off": [8, 10, 10, 10]}
    assert lesson(samples(4, **offs), RECOMMENDED).weight.tolist() == [0, 1, 0, 0]
    assert lesson(samples(4, **offs), Reading(oks_filter=None)).weight.tolist() == [1, 1, 1, 0]
    small_people = samples(4, area=np.full(4, 4000.0), **offs)
    assert lesson(small_people, RECOMMENDED).weight.tolist() == [0, 1, 0, 0]
    assert lesson(small_people, Reading(filter_area="person")).weight.tolist() == [1, 0, 0, 0]


def test_a_box_without_a_person_has_target_one_and_a_lower_weight():
    truth = np.zeros((3, 17, 3))
    truth[:2, :, 2] = 1
    found = lesson(
        replace(
            samples(3, small_off=[20, 20, 0], large_off=[10, 10, 0]), truth=truth, kind=np.array([0, 1, 2])
        ),
        Reading(oks_filter=None),
    )
    assert found.weight[:2].tolist() == [1, 1]
    assert 0 < found.weight[2] < 1
    assert found.target[2] == 1
    assert np.isfinite(found.released).all()


@pytest.mark.parametrize("case", CASES)
def test_released_mode_gives_the_loss_of_the_authors_code(case):
    truth = np.concatenate([np.array(case["ground_truth_xy"]), np.array(case["visible"])[:, None]], axis=1)
    points = {net: np.array([case[f"{net}_xy"]]) for net in ("small", "large")}
    part = lesson(replace(samples(1), truth=truth[None], **points), RELEASED)

    class Fixed(Router):
        def scores(self, crops):
            return torch.tensor([case["released"]["scores"]]).expand(len(crops), 3)

    loss = loss_of(Fixed(RouterConfig(outputs=3, score_index=1)), torch.zeros(1), part, RELEASED_RECIPE, CPU)
    assert loss.item() == pytest.approx(sum(case["released"]["losses"]), rel=1e-5)


RELEASED_RECIPE = replace(PAPER, released=True)


def test_the_loss_is_the_mean_of_weighted_squares_whatever_the_batch():
    class Fixed(Router):
        def scores(self, crops):
            return torch.full((len(crops), 1), 0.5)

    part = learning.Lesson(np.array([1.0, 0.3]), np.array([0.1, 1.0]), np.zeros((2, 4)))
    loss = loss_of(Fixed(RouterConfig()), torch.zeros(2), part, PAPER, CPU)
    assert loss.item() == pytest.approx((0.16 + 0.3 * 0.25) / 2)
    alone = learning.Lesson(part.weight[1:], part.target[1:], part.released[1:])
    loss = loss_of(Fixed(RouterConfig()), torch.zeros(1), alone, PAPER, CPU)
    assert loss.item() == pytest.approx(0.3 * 0.25)


def test_the_papers_recipe_warms_up_over_five_steps_and_stays():
    optimizer, schedule = optimisation(Router(RouterConfig()), PAPER, 100)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-6, 2.575e-5, 5.05e-5, 7.525e-5, 1e-4, 1e-4, 1e-4, 1e-4])
    assert type(optimizer) is torch.optim.Adam  # whose weight decay is in the gradient
    assert optimizer.param_groups[0]["weight_decay"] == 0.005
    assert (PAPER.batch, PAPER.epochs, PAPER.augment, PAPER.boxes, PAPER.autocast) == (
        1,
        1,
        False,
        "labelled",
        False,
    )


def test_batch_one_sees_every_counted_crop_once_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And as it is: normalisation layers count one batch a crop, as the released file's 149,813 do."""
    everybody = noise(8, held_back=np.arange(8) >= 6)
    shown = []
    real = learning.loss_of
    monkeypatch.setattr(learning, "loss_of", lambda *a: shown.append(a[1].clone()) or real(*a))
    reading = Reading(oks_filter=None)
    router, lines = train(everybody, reading, PAPER, CPU, tmp_path / "router.safetensors", "run")
    assert int(router.bn1.num_batches_tracked) == 6
    crops = torch.from_numpy(everybody.crops[:6]).permute(0, 3, 1, 2)
    sums = {round(batch.double().sum().item(), 1) for batch in shown}
    assert sums == {round(learning.normalize(crop[None]).double().sum().item(), 1) for crop in crops}
    assert [len(batch) for batch in shown] == [1] * 6
    assert (lines[0]["samples"], lines[0]["people"]) == (6, 2)


def test_augmentation_mirrors_and_brightens():
    crops = torch.linspace(-1, 1, 192).expand(64, 3, 4, 192)
    drawn = learning.augment(crops, torch.Generator().manual_seed(0))
    rising = drawn[:, 0, 0, -1] > drawn[:, 0, 0, 0]
    assert 16 < rising.sum() < 48
    assert 0.1 < drawn.mean((1, 2, 3)).std() < 0.25
    assert torch.equal(drawn, learning.augment(crops, torch.Generator().manual_seed(0)))


def test_every_epoch_sees_other_variants_of_a_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = []
    real = learning.loss_of
    monkeypatch.setattr(learning, "loss_of", lambda *a: shown.append(a[1].mean().item()) or real(*a))
    recipe = replace(BATCHED, batch=1, epochs=3, autocast=False)
    train(noise(1), Reading(oks_filter=None), recipe, CPU, tmp_path / "router.safetensors", "run")
    assert len(set(shown)) == 3


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learning, "CHECKPOINT_STEPS", 1)
    everybody = noise(12, held_back=np.arange(12) >= 8)
    recipe = replace(BATCHED, batch=4, epochs=2, autocast=False)
    reading = Reading(oks_filter=None)

    def run(out: str, name: str = "run") -> tuple[Router, list]:
        return train(everybody, reading, recipe, CPU, tmp_path / f"{out}.safetensors", name)

    whole, lines = run("whole")
    real = torch.save

    def interrupt(state, path: Path) -> None:
        real(state, path)
        if state["step"] == 3:  # in the middle of the second epoch
            path.replace(tmp_path / "resumed.checkpoint")
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    monkeypatch.setattr(torch, "save", real)
    with pytest.raises(SamplesError, match="another run"):
        run("resumed", name="with another reading")
    resumed, resumed_lines = run("resumed")
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert lines == resumed_lines
    assert [json.loads(line) for line in (tmp_path / "resumed.log").read_text().splitlines()] == lines


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None, {"run": "run"}, ["run"]])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, content: object):
    file = tmp_path / "router.checkpoint"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    else:  # cut off
        torch.save({"run": "run", "router": torch.zeros(10_000)}, file)
        file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(SamplesError, match=r"router\.checkpoint is .*: remove it to start anew$"):
        train(noise(3), Reading(oks_filter=None), PAPER, CPU, tmp_path / "router.safetensors", "run")


def test_where_nobody_counts_there_is_nothing_to_learn(tmp_path: Path):
    with pytest.raises(SamplesError, match="none of the 3 boxes counts"):
        train(samples(3), RECOMMENDED, PAPER, CPU, tmp_path / "router.safetensors", "run")


def test_in_released_mode_everybody_trains_the_third_term(tmp_path: Path):
    router, lines = train(
        noise(3), RELEASED, replace(RELEASED_RECIPE, batch=3), CPU, tmp_path / "router.safetensors", "run"
    )
    assert (router.config.outputs, router.config.score_index) == (3, 1)
    assert lines == [
        {"epoch": 1, "loss": lines[0]["loss"], "samples": 3}
    ]  # nobody held back, nothing validated


def test_people_are_validated_on_their_own_boxes_by_their_own_area(monkeypatch: pytest.MonkeyPatch):
    everybody = noise(
        6, held_back=np.array([0, 1, 1, 1, 1, 1], bool), kind=np.array([0, 0, 0, 0, SLOPPY, WRONG])
    )
    given = []
    monkeypatch.setattr(learning.curve, "validate", lambda *arguments: given.extend(arguments) or {})
    validation(Router(RouterConfig()), everybody, CPU)
    scores, gain, height, wrong = given
    assert (len(scores), height.tolist(), len(wrong)) == (3, [1, 2, 3], 1)
    own = slice(1, 4)
    small, large = (
        oks(points[own], everybody.truth[own, :, :2], np.ones((3, 17)), np.full(3, 20000.0))
        for points in (everybody.small, everybody.large)
    )
    assert gain == pytest.approx(large - small)
