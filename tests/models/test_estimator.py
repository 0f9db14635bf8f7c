import pytest
import torch
from torch import Tensor

from models.codec import Codec
from models.estimator import PoseEstimator
from models.geometry import Normalization
from models.skeleton import COCO, CROWDPOSE, FLIP_INDEX, Skeleton

INPUT_SIZE = (96, 128)


def brightest_cell(crops: Tensor) -> Tensor:
    """A network whose heatmaps peak where the crop is bright: its answer is known for any picture."""
    heatmap = torch.nn.functional.avg_pool2d(crops.mean(dim=1, keepdim=True), 4)
    return (heatmap - heatmap.amin()).expand(-1, 17, -1, -1).contiguous()


def picture_with_spot(x: int, y: int, size: tuple[int, int] = (200, 300)) -> Tensor:
    height, width = size
    picture = torch.zeros(height, width, 3, dtype=torch.uint8)
    picture[y - 4 : y + 5, x - 4 : x + 5] = 255
    return picture


def test_keypoints_come_back_in_picture_pixels():
    estimator = PoseEstimator(brightest_cell, input_size=INPUT_SIZE, codec="quarter")
    picture = picture_with_spot(150, 80)
    keypoints = estimator([picture], torch.tensor([[100.0, 30.0, 120.0, 160.0]]))
    assert keypoints.shape == (1, 17, 3)
    cell = 160 * 1.25 / 32  # one heatmap cell in picture pixels: the finest that an argmax can promise
    assert torch.allclose(keypoints[0, :, :2], torch.tensor([150.0, 80.0]).expand(17, 2), atol=cell)


def test_each_person_is_cut_from_its_own_picture():
    estimator = PoseEstimator(brightest_cell, input_size=INPUT_SIZE, codec="quarter")
    pictures = [picture_with_spot(150, 80), picture_with_spot(60, 120, (240, 160))]
    boxes = torch.tensor([[100.0, 30.0, 120.0, 160.0], [10.0, 60.0, 100.0, 130.0]])
    together = estimator(pictures, boxes)
    alone = torch.cat([estimator([picture], box[None]) for picture, box in zip(pictures, boxes, strict=True)])
    assert torch.allclose(together, alone, atol=1e-3)
    assert torch.allclose(together[1, 0, :2], torch.tensor([60.0, 120.0]), atol=6)


def test_the_flip_test_swaps_left_and_right_back():
    def left_and_right(crops: Tensor) -> Tensor:
        """Joint k peaks in column k + 3, except that a mirrored crop (dark on the left) gives the mirrored answer."""
        heatmaps = torch.zeros(len(crops), 17, 32, 24)
        for index, crop in enumerate(crops):
            mirrored = crop[:, :, :48].mean() < crop[:, :, 48:].mean()
            for joint in range(17):
                column = FLIP_INDEX[joint] + 3 if mirrored else joint + 3
                # The mirrored map is moved by one cell before it is averaged, as MSRA nets need it.
                heatmaps[index, joint, 16, 23 - column + 1 if mirrored else column] = 1
        return heatmaps

    picture = torch.zeros(128, 96, 3, dtype=torch.uint8)
    picture[:, :48] = 255
    estimator = PoseEstimator(left_and_right, input_size=INPUT_SIZE, codec="argmax")
    boxes = torch.tensor([[9.6, 12.8, 76.8, 102.4]])  # with its padding exactly the picture
    plain, flipped = estimator([picture], boxes), estimator([picture], boxes, flip_test=True)
    assert plain[0, :, 0].tolist() == [4.0 * (joint + 3) for joint in range(17)]
    assert torch.allclose(flipped, plain, atol=1e-4)


def brightest_bins(crops: Tensor) -> Tensor:
    """A SimCC network with two bins a pixel: its vectors are the crop's brightest values along each axis."""
    bright = crops.mean(dim=1) - crops.amin()
    x, y = bright.amax(dim=1), bright.amax(dim=2)
    return torch.cat([x, y], dim=1).repeat_interleave(2, dim=1)[:, None].expand(-1, 17, -1).contiguous()


def test_a_simcc_net_answers_in_picture_pixels():
    estimator = PoseEstimator(brightest_bins, input_size=INPUT_SIZE, codec="simcc")
    picture = picture_with_spot(150, 80)
    boxes = torch.tensor([[100.0, 30.0, 120.0, 160.0]])
    for flip_test in (False, True):
        keypoints = estimator([picture], boxes, flip_test=flip_test)
        assert keypoints.shape == (1, 17, 3)
        # Among equal bins the first wins: half a spot, 4.5 px, to the left and above.
        assert (keypoints[0, :, :2] - torch.tensor([150.0, 80.0])).abs().max() < 7


@pytest.mark.parametrize("codec", ["dark", "simcc"])
def test_scores_are_the_raw_peaks(codec: Codec):
    """Above 1 and below 0 too: that is how MMPose ranks poses."""

    def network(crops: Tensor) -> Tensor:
        answer = torch.full((len(crops), 17, *((24 + 32,) if codec == "simcc" else (32, 24))), -0.5)
        answer[:, 0] = 1.25
        return answer

    estimator = PoseEstimator(network, input_size=(24, 32), codec=codec)
    picture = torch.zeros(32, 24, 3, dtype=torch.uint8)
    scores = estimator([picture], torch.tensor([[2.4, 3.2, 19.2, 25.6]]))[0, :, 2]
    assert scores.tolist() == [1.25] + [-0.5] * 16


@pytest.mark.parametrize("codec", ["quarter", "dark_udp", "simcc"])
@pytest.mark.parametrize("skeleton", [COCO, CROWDPOSE])
def test_a_mirrored_persons_left_is_its_right_in_every_codec_and_keypoint_set(
    codec: Codec, skeleton: Skeleton
):
    """A symmetric picture and a net that puts joint k at a place of its own: the flip test moves every joint to the
    middle between its place and the mirror image of its partner's."""
    count = len(skeleton.keypoints)
    width, height = 24, 32

    def network(crops: Tensor) -> Tensor:
        x = torch.exp(-((torch.arange(width) - 11.5 - torch.arange(count)[:, None] / 4) ** 2) / 8)
        y = torch.exp(-((torch.arange(height) - 16.0) ** 2) / 8).expand(count, -1)
        if codec == "simcc":
            return torch.cat([x, y], dim=1).expand(len(crops), -1, -1).contiguous()
        return (y[:, :, None] * x[:, None, :]).expand(len(crops), -1, -1, -1).contiguous()

    estimator = PoseEstimator(network, input_size=(24, 32), codec=codec, skeleton=skeleton)
    seen = []
    estimator.network = lambda crops: seen.append(crops) or network(crops)
    keypoints = estimator(
        [torch.zeros(32, 24, 3, dtype=torch.uint8)], torch.tensor([[2.4, 3.2, 19.2, 25.6]]), flip_test=True
    )
    assert len(seen) == 2
    assert keypoints.shape == (1, count, 3)
    left, right = skeleton.flip_pairs[0]
    single = [k for k in range(count) if skeleton.flip_index[k] == k]
    sums = keypoints[0, left, 0] + keypoints[0, right, 0]
    assert sums == pytest.approx(24, abs=2)  # symmetric about the crop's middle, to a cell
    assert all(abs(keypoints[0, k, 0] - 12) < 4.5 for k in single)


def test_a_net_sees_its_own_mean_deviation_channel_order_and_padding():
    seen: list[Tensor] = []

    def network(crops: Tensor) -> Tensor:
        seen.append(crops)
        return torch.zeros(len(crops), 17, 8, 6)

    picture = torch.zeros(64, 48, 3, dtype=torch.uint8)
    picture[:] = torch.tensor([103, 42, 11], dtype=torch.uint8)
    estimator = PoseEstimator(
        network,
        input_size=(48, 64),
        codec="argmax",
        normalization=Normalization((3.0, 2.0, 1.0), (10.0, 20.0, 30.0), bgr=True),
        padding=1.0,
    )
    estimator([picture], torch.tensor([[0.0, 0.0, 48.0, 64.0]]))
    assert seen[0].shape == (1, 3, 64, 48)
    assert seen[0][0, :, 32, 24].tolist() == pytest.approx([10 / 30, 2.0, 10.0])
    assert seen[0][0, 2, 0, 0] == pytest.approx(10)  # without padding the corner is in the picture
