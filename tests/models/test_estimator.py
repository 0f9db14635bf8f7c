import torch
from torch import Tensor

from models.estimator import PoseEstimator
from models.skeleton import FLIP_INDEX

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
