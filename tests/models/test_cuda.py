"""Most of it only a machine with CUDA can tell."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from models.album import SIZE, places, to_device
from models.cuda import MAX_BATCH, Recorded
from models.zoo import Pair, load_pair
from tests.models.test_detector import photo

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("embedded", CUDA, torch.float16, "cudagraphs")


@pytest.fixture(scope="module")
def reference() -> Pair:
    return load_pair("embedded", torch.device("cpu"), torch.float32, "eager")


def in_album() -> list[Tensor]:
    return [to_device(photo(name), CUDA) for name in ("bus.jpg", "zidane.jpg", "bus.jpg")]


def elsewhere() -> list[Tensor]:
    return [photo(name).to(CUDA) for name in ("bus.jpg", "zidane.jpg", "bus.jpg")]


@needs_cuda
def test_pictures_come_into_the_album_of_the_device():
    pictures = in_album()
    found = places(pictures)
    assert found is not None
    album, starts = found
    assert len(set(starts)) == 3
    assert torch.equal(pictures[1].cpu(), photo("zidane.jpg"))
    assert album.pixels.numel() <= SIZE
    assert places([*pictures, *elsewhere()]) is None


@needs_cuda
def test_the_same_comes_out_whether_pictures_lie_in_the_album_or_not(pair: Pair, caplog):
    with caplog.at_level(logging.WARNING, "dynpose.cuda"):
        found, expected = [pair.detector(them, [0.3] * 3) for them in (in_album(), elsewhere())]
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=0.02)
        boxes = torch.cat([each[:2] for each in expected])
        for net in (pair.small, pair.large):
            for flip_test in (False, True):
                poses = [
                    net([picture for picture in them for _ in range(2)], boxes[:, :4], flip_test=flip_test)
                    for them in (in_album(), elsewhere())
                ]
                assert (poses[0] - poses[1]).abs().max() < 0.05
        for repetition in range(2):
            scores = [
                pair.router.with_keypoints(
                    [picture for picture in them for _ in range(2)], boxes[:, :4], boxes[:, 4]
                )
                for them in (in_album(), elsewhere())
            ]
            assert torch.allclose(scores[0][0], scores[1][0], atol=1e-3), repetition
            assert scores[0][1] is not None
            assert torch.allclose(scores[0][1], scores[1][1], atol=0.05)
    assert caplog.messages == []  # such as that something cannot be recorded


@needs_cuda
def test_half_precision_on_cuda_is_close_to_the_reference(pair: Pair, reference: Pair):
    (boxes,) = reference.detector([photo("bus.jpg")], [0.5])
    (found,) = pair.detector([to_device(photo("bus.jpg"), CUDA)], [0.5])
    assert torch.allclose(boxes, found, atol=4)  # letterboxed otherwise
    many, ours = [photo("bus.jpg")] * len(boxes), [to_device(photo("bus.jpg"), CUDA)] * len(boxes)
    for net, exact in ((pair.small, reference.small), (pair.large, reference.large)):
        expected, poses = exact(many, boxes[:, :4]), net(ours, boxes[:, :4])
        sure = expected[:, :, 2] > 0.3
        assert (poses - expected)[sure][:, :2].abs().median() < 0.5
    difference = pair.router(ours, boxes[:, :4], boxes[:, 4]) - reference.router(
        many, boxes[:, :4], boxes[:, 4]
    )
    assert difference.abs().max() < 0.02


@needs_cuda
def test_pictures_on_the_cpu_are_taken_as_well(pair: Pair):
    here, there = photo("bus.jpg"), photo("bus.jpg").to(CUDA)
    (boxes,) = pair.detector([there], [0.5])
    (found,) = pair.detector([here], [0.5])
    assert torch.allclose(found, boxes, atol=4)  # letterboxed otherwise
    many, ours = [there] * len(boxes), [here] * len(boxes)
    for net in (pair.small, pair.large):
        assert (net(ours, boxes[:, :4]) - net(many, boxes[:, :4]))[..., :2].abs().median() < 0.5
    scores = [pair.router(them, boxes[:, :4], boxes[:, 4]) for them in (ours, many)]
    assert (scores[0] - scores[1]).abs().max() < 0.02


@needs_cuda
def test_a_recording_within_another_is_a_part_of_it():
    inner = Recorded(lambda batch: (batch * 2,), "inner")
    outer = Recorded(lambda batch: (inner(batch)[0] + 1,), "outer")
    for size in (3, 4, 1):
        batch = torch.arange(float(size), device=CUDA)[:, None]
        assert torch.equal(outer(batch)[0], batch * 2 + 1)
    assert not inner._recordings
    assert torch.equal(inner(torch.ones(1, 1, device=CUDA))[0], torch.full((1, 1), 2.0, device=CUDA))


@needs_cuda
def test_a_recording_is_made_on_the_stream_that_it_will_run_on():
    streams = []

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        streams.append(torch.cuda.current_stream())
        return (batch + 1,)

    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    for stream in (one, other):
        recorded = Recorded(run, "run")
        with torch.cuda.stream(stream):
            assert recorded(torch.ones(2, 1, device=CUDA))[0].sum() == 4
        assert set(streams) == {stream}
        streams.clear()
    Recorded(run, "run")(torch.ones(2, 1, device=CUDA))
    assert torch.cuda.default_stream() not in streams


@needs_cuda
def test_a_recording_that_fails_leaves_the_others_of_its_stream_alone():
    weights = torch.rand(4096, 64, device=CUDA)  # long sums, for which cuBLAS wants a workspace

    def product(batch: Tensor) -> tuple[Tensor, ...]:
        return (batch @ weights,)

    def fails(batch: Tensor) -> tuple[Tensor, ...]:
        product(batch)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not this one")
        return product(batch)

    batch = torch.rand(8, 4096, device=CUDA)
    expected = batch @ weights
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        recorded = Recorded(product, "product")
        recorded(batch)
        assert torch.allclose(Recorded(fails, "fails")(batch)[0], expected)
        torch.cuda.empty_cache()
        others = [torch.zeros(1 << 18, device=CUDA) for _ in range(64)]
        for _ in range(10):
            assert torch.allclose(recorded(batch)[0], expected)
        assert not any(other.any() for other in others)


@needs_cuda
def test_recordings_of_one_thread_run_in_several_at_the_same_time():
    weights = torch.rand(4096, 64, device=CUDA)
    batches = [torch.rand(8, 4096, device=CUDA) for _ in range(4)]
    expected = [batch @ weights for batch in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    recorded = [Recorded(lambda batch: (batch @ weights,), "product") for _ in batches]

    def right(index: int, times: int) -> int:
        with torch.cuda.stream(streams[index]):
            answers = (recorded[index](batches[index])[0] for _ in range(times))
            return sum(torch.allclose(answer, expected[index]) for answer in answers)

    for index in range(len(batches)):  # as a service warms its stages
        assert right(index, 1) == 1
    with ThreadPoolExecutor(len(batches)) as threads:
        assert list(threads.map(lambda index: right(index, 500), range(len(batches)))) == [500] * len(batches)


def test_who_finds_no_memory_for_a_recording_is_told_so_once(monkeypatch: pytest.MonkeyPatch, caplog):
    asked = []

    def record(_: Recorded, __: Tensor, size: int) -> None:
        asked.append(size)
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(Recorded, "_record", record)
    doubled = Recorded(lambda batch: (batch * 2,), "doubled")
    for size in (8, 3):
        with pytest.raises(torch.OutOfMemoryError, match="ALLOC_FAILED"):
            doubled(torch.ones(size, 1))
        assert doubled(torch.ones(size, 1))[0].sum() == 2 * size
    assert asked == [8, 4]
    assert caplog.messages == []


def test_what_runs_out_of_memory_without_a_recording_is_told_so_as_well():
    def full(_: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")

    def wrong(_: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("sizes differ")

    many = torch.ones(MAX_BATCH + 1, 1)
    with pytest.raises(torch.OutOfMemoryError):
        Recorded(full, "full")(many)
    with pytest.raises(RuntimeError, match="sizes differ"):
        Recorded(wrong, "wrong")(many)


def test_shapes_beyond_the_first_ones_run_without_a_recording(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.cuda.MOST", 0)
    assert Recorded(lambda batch: (batch * 2,), "doubled")(torch.ones(2, 1))[0].sum() == 4


@needs_cuda
def test_what_cannot_be_recorded_runs_all_the_same(caplog: pytest.LogCaptureFixture):
    def chooses(batch: Tensor) -> tuple[Tensor, ...]:
        return (batch + 1 if batch.sum().item() > 0 else batch,)

    run = Recorded(chooses, "chooses")
    for value in (1.0, -1.0):
        batch = torch.full((2, 1), value, device=CUDA)
        assert torch.equal(run(batch)[0], chooses(batch)[0])
    assert "chooses runs without CUDA graphs" in caplog.text


@needs_cuda
def test_a_network_on_cuda_is_the_module():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    from models.runtime import compile_network

    batch = torch.rand(3, 3, 8, 8)
    expected = module(batch)
    network = compile_network(module, CUDA, torch.float32, "cudagraphs")
    assert torch.allclose(network(batch).cpu(), expected, atol=1e-4)
