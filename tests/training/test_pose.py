import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calibration.data import DataError
from models.tinypose import TinyPose
from models.zoo import save_weights
from training import pose
from training.checkpoints import OtherRun
from training.people import Sample
from training.pose import RECIPES, Trainer, epoch, join, pose_loss, train

CPU = torch.device("cpu")
TINY = replace(RECIPES["small"], size=(64, 64), batch=2, views=8)


def people(count: int = 4) -> list[Sample]:
    random = np.random.default_rng(0)
    return [
        Sample(
            torch.from_numpy(random.integers(0, 255, (48, 40, 3), dtype=np.uint8)),
            np.array([4, 4, 30, 40], dtype=np.float32),
            random.uniform(5, 35, (17, 2)).astype(np.float32),
            np.ones(17, dtype=np.float32),
            "ground_truth" if i % 2 else "more",
            600.0,
        )
        for i in range(count)
    ]


def new_trainer(seed: int = 0) -> Trainer:
    torch.manual_seed(0)
    return Trainer(TINY, TinyPose(), CPU, seed)


def parameters(network: TinyPose) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_loss_is_the_squared_error_of_a_map_averaged_over_labelled_joints() -> None:
    heatmaps, targets = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    heatmaps[0, 0] = 1
    heatmaps[0, 2] = 100
    assert pose_loss(heatmaps, targets, torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(2)


def test_joints_without_label_do_not_move_the_weights() -> None:
    trainer = new_trainer()
    before = parameters(trainer.network)
    trainer.optimizer.param_groups[0]["weight_decay"] = 0
    trainer.train_step([replace(s, weights=np.zeros(17, dtype=np.float32)) for s in people()])
    assert torch.equal(before, parameters(trainer.network))


def test_people_with_ground_truth_come_twice_an_epoch() -> None:
    order = epoch(people(6), np.random.default_rng(0))
    assert sorted(order) == [0, 1, 1, 2, 3, 3, 4, 5, 5]


def test_a_stopped_run_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    whole, stopped, resumed = new_trainer(), new_trainer(), new_trainer(seed=5)
    samples = people()
    for trainer, steps in ((whole, 4), (stopped, 2)):
        for _ in range(steps):
            trainer.train_step(samples)
    stopped.save(tmp_path / "some.checkpoint")
    resumed.load(tmp_path / "some.checkpoint")
    for _ in range(2):
        resumed.train_step(samples)
    assert resumed.step == whole.step == 4
    assert torch.equal(parameters(whole.network), parameters(resumed.network))
    assert torch.equal(parameters(whole.average), parameters(resumed.average))


def test_a_checkpoint_of_other_data_is_not_gone_on_from(tmp_path: Path) -> None:
    trainer = new_trainer()
    trainer.run = "one"
    trainer.save(tmp_path / "some.checkpoint")
    trainer.load(tmp_path / "some.checkpoint")
    trainer.run = "another"
    with pytest.raises(OtherRun, match=r"some\.checkpoint is of other data"):
        trainer.load(tmp_path / "some.checkpoint")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    trainer, path = new_trainer(), tmp_path / "some.checkpoint"
    trainer.save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"some\.checkpoint is damaged: remove it"):
        trainer.load(path)


def test_a_run_leaves_half_precision_weights_that_load_strictly_and_a_curve(tmp_path: Path) -> None:
    trainer = new_trainer()
    train(trainer, people(), people(2), tmp_path / "small", every=10)
    weights = load_file(tmp_path / "small.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    TinyPose().load_state_dict(weights, strict=True)
    curve = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text().splitlines()]
    assert curve[0]["views"] == 0
    assert curve[-1]["views"] == trainer.step * TINY.batch > 0
    assert {"loss", "ground_truth_oks", "ground_truth_ar", "more_oks"} <= curve[-1].keys()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_that_is_cut_off_leaves_no_weights_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer()
    monkeypatch.setattr(trainer, "train_step", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(trainer, people(), people(2), tmp_path / "small", every=10)
    assert (tmp_path / "small.checkpoint").exists()
    assert not (tmp_path / "small.safetensors").exists()


def test_the_large_net_is_the_two_results_in_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    nets = {role: TinyPose() for role in ("coarse", "fine")}
    for role, network in nets.items():
        save_weights(network, tmp_path / f"{role}.safetensors")
    joined = join(tmp_path)
    assert torch.allclose(parameters(joined.fine), parameters(nets["fine"]), atol=1e-3)
    assert torch.allclose(parameters(joined.coarse), parameters(nets["coarse"]), atol=1e-3)


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pose", str(tmp_path)])
    pose.main()
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"
