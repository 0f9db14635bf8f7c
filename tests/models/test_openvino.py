"""OpenVINO as a runtime, against PyTorch: the bundled networks on people of real photographs."""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import ultralytics
from torch import Tensor, nn

from app.policy import SplitPolicy
from calibration.thresholds import read_calibration
from models import openvino as openvino_runtime
from models.detector import YoloDetector
from models.geometry import center_scale
from models.router import Router, RouterConfig
from models.runtime import Runtime, compile_network, resolve_dtype, resolve_runtime
from models.tinypose import TinyPose
from models.zoo import (
    Pair,
    load_detector,
    load_estimator,
    load_pair,
    load_router,
    named_entry,
    read_manifest,
    save_weights,
)
from models.zoo import pairs as pairs_module
from models.zoo.manifest import RouterEntry
from tests.process import until

if importlib.util.find_spec("openvino") is None:  # not importorskip: an import from here would report itself
    pytest.skip("needs the package openvino", allow_module_level=True)

CPU = torch.device("cpu")
ASSETS = Path(ultralytics.__file__).parent / "assets"

IN_BF16 = resolve_dtype(CPU, "auto") is torch.bfloat16
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not IN_BF16, reason="this CPU does not compute in bfloat16: PyTorch takes minutes"
        ),
    ),
]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))


class FixedBatch(nn.Module):
    """A network that is traced with two crops and then knows no other number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).view(len(x), 3, 32, 32)


class FixedAddend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(len(x), 1, 1, 1)


class FixedValue(nn.Module):
    """What it adds is the number of crops."""

    def forward(self, x: Tensor) -> Tensor:
        return x + len(x)


@pytest.mark.parametrize("size", [(32, 64), None])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_it_does_what_pytorch_does_for_any_number_of_crops(
    size: tuple[int, int] | None, dtype: torch.dtype, allowed: float
) -> None:
    network = compile_network(small_network(), CPU, dtype, "openvino", size=size)
    reference = compile_network(small_network(), CPU, torch.float32)
    for count, height, width in ((1, 64, 32), (5, 64, 32), *([] if size else [(2, 96, 64)])):
        crops = torch.rand(count, 3, height, width)
        found = network(crops)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert torch.allclose(found, reference(crops), atol=allowed)


@pytest.mark.parametrize("size", [(32, 64), None])
def test_several_threads_may_ask_at_once(size: tuple[int, int] | None) -> None:
    network = compile_network(small_network(), CPU, torch.float32, "openvino", size=size)
    reference = compile_network(small_network(), CPU, torch.float32)
    batches = [torch.rand(count, 3, 64, 32) for count in (1, 2, 4, 5, 7, 8) * 20]
    with ThreadPoolExecutor(3) as threads:
        for batch, found in zip(batches, threads.map(network, batches), strict=True):
            assert torch.allclose(found, reference(batch), atol=1e-5)


class Request:
    """An infer request that notes how many it is asked for, and waits where it is told to."""

    def __init__(self, size: int, asked: list[int], wait: dict[int, threading.Event]) -> None:
        self.size, self.asked, self.wait = size, asked, wait

    def infer(self, inputs: dict[int, np.ndarray], **_: bool) -> list[np.ndarray]:
        assert len(inputs[0]) == self.size
        self.asked.append(self.size)
        if self.size in self.wait:
            assert self.wait[self.size].wait(30)
        return [inputs[0].copy()]


def test_while_one_thread_is_in_the_network_of_four_another_takes_that_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = compile_network(small_network(), CPU, torch.float32, "openvino", size=(32, 32))
    asked: list[int] = []
    wait = {4: threading.Event()}
    core = SimpleNamespace(
        compile_model=lambda model, *_: SimpleNamespace(
            create_infer_request=lambda: Request(model.input(0).partial_shape[0].get_length(), asked, wait)
        )
    )
    monkeypatch.setattr("models.openvino._core", lambda: core)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(network, torch.zeros(6, 3, 32, 32))
        assert until(lambda: asked == [4])
        assert len(network(torch.zeros(5, 3, 32, 32))) == 5
        assert asked == [4, *[1] * 5]
        wait[4].set()
        assert len(first.result(30)) == 6
    assert asked == [4, *[1] * 7]


def test_an_answer_outlives_the_next_one() -> None:
    network = compile_network(small_network(), CPU, torch.float32, "openvino", size=(32, 32))
    first = network(torch.zeros(1, 3, 32, 32))
    kept = first.clone()
    network(torch.ones(1, 3, 32, 32))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("kind", [FixedBatch, FixedAddend, FixedValue])
def test_a_network_that_it_would_change_runs_in_pytorch(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        network = compile_network(kind(), CPU, torch.float32, "openvino", size=(32, 32))
    crops = torch.ones(4, 3, 32, 32)
    assert torch.equal(network(crops), kind()(crops))
    assert f"{kind.__name__} runs in PyTorch" in caplog.text


def test_a_network_that_cannot_be_read_back_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = openvino_runtime._core()

    def refuse(*_: object) -> None:
        raise RuntimeError("not here")

    unable = SimpleNamespace(
        compile_model=core.compile_model, read_model=core.read_model, import_model=refuse
    )
    monkeypatch.setattr(openvino_runtime, "_core", lambda: unable)
    network = compile_network(
        small_network(), CPU, torch.float32, "openvino", size=(32, 32), cache=tmp_path / "cache"
    )
    crops = torch.rand(4, 3, 32, 32)
    assert torch.allclose(network(crops), small_network()(crops), atol=1e-4)


def test_pose_nets_are_folded_before_they_are_compiled() -> None:
    model = openvino_runtime.convert(TinyPose(), (96, 128))
    shuffles = [node for node in model.get_ops() if node.get_type_name() in ("Transpose", "ShuffleChannels")]
    assert len(shuffles) <= 2  # of the input; TinyPose shuffles 49 times


def test_a_network_is_converted_once(tmp_path: Path) -> None:
    cache = tmp_path / "not yet there" / "network"
    network = compile_network(small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache)
    again = compile_network(
        lambda: pytest.fail("made again"), CPU, torch.float32, "openvino", size=(32, 32), cache=cache
    )
    crops = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(crops), again(crops))
    assert [path.name for path in cache.parent.iterdir()] == ["network"]


def compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO may only read what was compiled before."""
    core = openvino_runtime._core()
    reads = SimpleNamespace(read_model=core.read_model, import_model=core.import_model)
    monkeypatch.setattr("models.openvino._core", lambda: reads)


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def test_what_was_compiled_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "network"

    def run(threads: int = 1) -> Tensor:
        network = compile_network(
            small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache, threads=threads
        )
        return network(torch.ones(5, 3, 32, 32))  # a piece of four and one of one

    expected = run()
    assert len(kept(cache / "float")) == 2
    with monkeypatch.context() as patch:
        compile_nothing(patch)
        assert torch.equal(run(), expected)
    assert torch.allclose(run(threads=2), expected)
    assert len(kept(cache / "float")) == 4
    capabilities = {**torch.cpu.get_capabilities(), "avx512_vnni": "of another machine"}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert torch.equal(run(), expected)
    assert len(kept(cache / "float")) == 6


def with_another_weight(content: bytes) -> bytes:
    """Which OpenVINO itself would not mind."""
    weights = small_network()[2].weight.detach().numpy().tobytes()
    assert content.count(weights) == 1
    return content.replace(weights, weights[:-4] + b"\0\0\0\0")


@pytest.mark.parametrize("damage", [lambda _: b"", lambda content: content[:-9], with_another_weight])
def test_what_was_compiled_and_is_damaged_is_compiled_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "network"

    def run() -> Tensor:
        network = compile_network(small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache)
        return network(torch.ones(1, 3, 32, 32))

    expected = run()
    (path,) = kept(cache / "float")
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(run(), expected)
    compile_nothing(monkeypatch)
    assert torch.equal(run(), expected)


def test_a_damaged_network_is_converted_again(tmp_path: Path) -> None:
    def compiled() -> Tensor:
        cache = tmp_path / "network"
        network = compile_network(small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache)
        return network(torch.ones(1, 3, 32, 32))

    expected = compiled()
    (tmp_path / "network" / "network.xml").write_text("<net")
    assert torch.equal(compiled(), expected)
    (tmp_path / "network" / "network.bin").write_bytes(b"")
    assert torch.equal(compiled(), expected)


def test_networks_not_read_for_long_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.openvino.KEPT", 2)
    (tmp_path / "another's").mkdir()
    for name in "abac":
        for age, folder in enumerate(
            sorted(tmp_path.iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        ):
            os.utime(folder, (age, age))
        cache = tmp_path / name
        compile_network(small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "another's", "c"]


def test_compilations_not_used_for_long_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.openvino.KEPT", 1)
    cache = tmp_path / "network"
    for threads in (1, 2, 3):
        network = compile_network(
            small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache, threads=threads
        )
        network(torch.ones(1, 3, 32, 32))
    assert len(kept(cache / "float")) == 2  # the newest of those before, and its own


def test_where_nothing_can_be_written_what_is_there_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Tensor:
        cache = tmp_path / "network"
        network = compile_network(small_network, CPU, torch.float32, "openvino", size=(32, 32), cache=cache)
        return network(torch.ones(1, 3, 32, 32))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    expected = run()
    for function in ("os.utime", "pathlib.Path.touch", "pathlib.Path.mkdir", "tempfile.mkdtemp"):
        monkeypatch.setattr(function, refuse)
    compile_nothing(monkeypatch)
    assert torch.equal(run(), expected)


def test_where_nothing_can_be_kept_it_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "openvino" / "network"
    network = compile_network(small_network(), CPU, torch.float32, "openvino", size=(32, 32), cache=cache)
    assert network(torch.ones(1, 3, 32, 32)).shape == (1, 4, 16, 16)


def test_without_a_home_a_pair_loads_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("no home directory")  # as pathlib does

    for name in ("DYNPOSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    load_router("embedded", read_manifest("embedded").router, CPU, torch.float32, "eager")


def test_a_pair_runs_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(metadata, "version", version)
    pairs_module._program.cache_clear()
    load_router("embedded", read_manifest("embedded").router, CPU, torch.float32)
    pairs_module._program.cache_clear()


def test_it_reports_nothing_to_anybody(tmp_path: Path) -> None:
    """The package would: on import and with every conversion."""
    program = (
        "import sys, torch\n"
        "from models.runtime import compile_network\n"
        "compile_network(torch.nn.Conv2d(3, 1, 1), torch.device('cpu'), torch.float32, 'openvino', size=(32, 32))\n"
        "assert 'openvino' in sys.modules\n"
        "assert not sys.modules['openvino_telemetry']"
    )
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_the_papers_router_takes_any_number_of_people(
    pooling: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNPOSE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    path = tmp_path / "dynpose.safetensors"
    config = RouterConfig(pooling=pooling)  # type: ignore[arg-type]
    save_weights(Router(config), path)
    entry = named_entry(RouterEntry, "router", f"dynpose={path}").model_copy(update={"config": config})
    crops = torch.randn(5, 3, 256, 192)
    fast, slow = (
        load_router("x", entry, CPU, torch.bfloat16, runtime).network for runtime in ("openvino", "eager")
    )
    for count in (1, 5):
        assert torch.allclose(fast(crops[:count]), slow(crops[:count]), atol=1e-5)
    assert not caplog.records


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    """Three photographs, each also at half its size, blurred, mirrored and cut off below."""
    photos = [
        cv2.cvtColor(cv2.imread(str(ASSETS / name)), cv2.COLOR_BGR2RGB) for name in ("bus.jpg", "zidane.jpg")
    ]
    photos.append(skimage.data.astronaut())
    variations = []
    for photo in photos:
        variations += [
            photo,
            cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
            cv2.GaussianBlur(photo, (0, 0), 3),
            photo[:, ::-1],
            photo[: len(photo) * 2 // 3],
        ]
    return [torch.from_numpy(np.ascontiguousarray(picture)) for picture in variations]


@pytest.fixture(scope="module")
def pairs() -> dict[tuple[str, torch.dtype], Pair]:
    return {
        (runtime, dtype): load_pair("embedded", CPU, dtype, runtime)  # type: ignore[arg-type]
        for runtime in ("eager", "openvino")
        for dtype in [torch.float32, torch.bfloat16][: 1 + IN_BF16]
    }


@pytest.fixture(scope="module")
def people(pictures: list[Tensor], pairs: dict[tuple[str, torch.dtype], Pair]) -> tuple[list[Tensor], Tensor]:
    """The picture of each person and (N, 5) box and score."""
    found = pairs["eager", torch.float32].detector(pictures, [0.35] * len(pictures))
    rows = torch.cat(found)
    assert len(rows) >= 30
    return [picture for picture, boxes in zip(pictures, found, strict=True) for _ in boxes], rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("net", ["small", "large"])
def test_keypoints_are_those_of_pytorch(pairs, people, net: str, dtype: torch.dtype) -> None:
    """In bfloat16 both round, each in its way: where a net is sure they agree, and neither is farther from float32 than
    the other."""
    pictures, rows = people
    exact, eager, found = (
        getattr(pairs[which], net)(pictures, rows[:, :4])
        for which in (("eager", torch.float32), ("eager", dtype), ("openvino", dtype))
    )
    sure = exact[:, :, 2] > 0.5
    # Of the large net's crop where people are larger than that, as most are here.
    pixel = (center_scale(rows[:, :4])[1][:, 1] / 384).clamp(min=1).view(-1, 1).expand_as(sure)[sure]

    def deviation(a: Tensor, b: Tensor) -> Tensor:
        """Quantiles 0.5 and 0.99 in pixels."""
        return ((a - b)[:, :, :2].norm(dim=2)[sure] / pixel).quantile(torch.tensor([0.5, 0.99]))

    assert (deviation(found, eager) <= torch.tensor([0.5, 2.0])).all()
    # The second is of some five joints, and differs from one kind of CPU to the next.
    assert (deviation(found, exact) <= torch.tensor([1.3, 2.0]) * deviation(eager, exact) + 0.01).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_boxes_are_those_of_pytorch(pairs, pictures, dtype: torch.dtype) -> None:
    floors = [0.35] * len(pictures)
    for slow, fast in zip(
        pairs["eager", dtype].detector(pictures, floors),
        pairs["openvino", dtype].detector(pictures, floors),
        strict=True,
    ):
        assert len(slow) == len(fast)
        corners = [torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], dim=1) for boxes in (slow, fast)]
        assert (overlaps(*corners).amax(1) > 0.98).all()


@pytest.fixture(scope="module")
def in_int8() -> YoloDetector:
    entry = read_manifest("embedded").detector
    detector = load_detector("embedded", entry, CPU, resolve_dtype(CPU, "auto"), int8=True, threads=1)
    assert isinstance(detector, YoloDetector)
    return detector


def test_a_detector_on_two_cores_finds_the_very_same(pictures: list[Tensor], in_int8: YoloDetector) -> None:
    """What is found must not depend on what else the service has to do."""
    entry = read_manifest("embedded").detector
    wide = load_detector("embedded", entry, CPU, resolve_dtype(CPU, "auto"), int8=True, threads=2)
    floors = [0.3] * len(pictures)
    for found, expected in zip(wide(pictures, floors), in_int8(pictures, floors), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("runtime", "wide"), [("openvino", True), ("eager", False)])
def test_where_two_detectors_run_at_once_there_is_a_wide_one(runtime: Runtime, wide: bool) -> None:
    one, two = (load_pair("embedded", CPU, torch.float32, runtime, detectors=number) for number in (1, 2))
    assert (one.more_detectors, one.wide_detector) == ((), None)
    assert len(two.more_detectors) == 1
    assert (two.wide_detector is not None) == wide


def test_boxes_in_int8_are_nearly_those_in_float32(
    pairs: dict[tuple[str, torch.dtype], Pair], pictures: list[Tensor], in_int8: YoloDetector
) -> None:
    """Whoever is found for sure is found by both, in about the same place; who is at the threshold may not be."""
    exact = pairs["eager", torch.float32].detector(pictures, [0.35] * len(pictures))
    found = in_int8(pictures, [0.3] * len(pictures))
    best = []
    for slow, fast in zip(exact, found, strict=True):
        sure = slow[slow[:, 4] > 0.4]
        corners = [torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], dim=1) for boxes in (sure, fast)]
        best += overlaps(*corners).amax(1).tolist()
    assert len(best) >= 30
    assert min(best) > 0.8
    assert np.median(best) > 0.98
    assert sum(map(len, found)) < 1.3 * sum(map(len, exact))


def test_a_network_in_int8_that_cannot_be_read_runs_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("detector-int8.xml", "detector-int8.bin"):
        (tmp_path / name).write_bytes(b"of another release")
    module = small_network()
    batch = torch.rand(1, 3, 64, 96)
    expected = compile_network(small_network(), CPU, torch.float32)(batch)
    path = tmp_path / "detector-int8.xml"
    found = compile_network(module, CPU, torch.float32, "openvino", quantized=path)(batch)
    assert torch.allclose(found, expected, atol=1e-4)
    assert "detector-int8.xml is of no use" in caplog.text


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    return box_iou(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_router_hands_over_the_keypoints_of_the_small_net(pairs, people, dtype: torch.dtype) -> None:
    pictures, rows = people
    pair = pairs["openvino", dtype]
    _, known = pair.router.with_keypoints(pictures, rows[:, :4], rows[:, 4])
    alone = load_estimator("embedded", pair.manifest.small, CPU, dtype, "openvino")(pictures, rows[:, :4])
    sure = alone[:, :, 2] > 0.5
    distance = (known - alone)[:, :, :2].norm(dim=2)[sure] / center_scale(rows[:, :4])[1][:, 1].view(
        -1, 1
    ).expand_as(sure)[sure]
    assert distance.quantile(0.5) < 0.001  # of the crop's height
    assert distance.quantile(0.99) < (0.001 if dtype is torch.float32 else 0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_people_take_the_routes_they_take_in_pytorch(pairs, people, dtype: torch.dtype) -> None:
    pictures, rows = people
    slow, fast = (
        pairs[runtime, dtype].router(pictures, rows[:, :4], rows[:, 4]) for runtime in ("eager", "openvino")
    )
    assert (slow - fast).abs().max() < 0.03
    scores = read_calibration(pairs["eager", dtype].manifest.calibration_path).scores
    k1 = SplitPolicy(scores, p=0.5, theta=0.1, mode="fixed", policy="top").snapshot.k1
    assert ((slow > k1) != (fast > k1)).float().mean() < 0.01


def test_the_runtime_that_was_asked_for_must_be_able_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert resolve_runtime(CPU, "auto") == "openvino"
    assert resolve_runtime(CPU, "eager") == "eager"
    assert resolve_runtime(cuda, "auto") == "cudagraphs"
    with pytest.raises(ValueError, match="RUNTIME=cudagraphs"):
        resolve_runtime(CPU, "cudagraphs")
    with pytest.raises(ValueError, match="RUNTIME=openvino"):
        resolve_runtime(cuda, "openvino")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert resolve_runtime(CPU, "auto") == "eager"
    with pytest.raises(ValueError, match="pip install openvino"):
        resolve_runtime(CPU, "openvino")
