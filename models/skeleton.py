"""Sets of keypoints: names, drawing edges, OKS sigmas and what a mirror does to them. COCO's 17 are the ones served."""

from dataclasses import dataclass

KEYPOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

SKELETON = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (7, 9),
    (6, 8),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)
"""Pairs of keypoint indices (from 0) that are joined by a line."""

SIGMAS = (
    0.026,
    0.025,
    0.025,
    0.035,
    0.035,
    0.079,
    0.079,
    0.072,
    0.072,
    0.062,
    0.062,
    0.107,
    0.107,
    0.087,
    0.087,
    0.089,
    0.089,
)
"""OKS: the standard deviation of annotators per keypoint, as a share of the square root of the area."""

FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))


@dataclass(frozen=True)
class Skeleton:
    """A set of K keypoints. flip_pairs, edges: indices from 0 of what a mirror swaps and of what a line joins. sigmas:
    as SIGMAS."""

    name: str
    keypoints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]

    @property
    def flip_index(self) -> tuple[int, ...]:
        """Keypoint i of a mirrored person is keypoint flip_index[i] of the person."""
        index = list(range(len(self.keypoints)))
        for left, right in self.flip_pairs:
            index[left], index[right] = right, left
        return tuple(index)


COCO = Skeleton("coco", KEYPOINT_NAMES, FLIP_PAIRS, SIGMAS, SKELETON)

FLIP_INDEX = COCO.flip_index

CROWDPOSE = Skeleton(
    "crowdpose",
    (
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
        "top_head",
        "neck",
    ),
    ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    (0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079),
    (
        (10, 8),
        (8, 6),
        (11, 9),
        (9, 7),
        (6, 7),
        (0, 6),
        (1, 7),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (12, 13),
        (1, 13),
        (0, 13),
    ),
)
"""The 14 of CrowdPose (Li et al., CVPR 2019); sigmas and edges as its evaluator and MMPose have them."""

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO, CROWDPOSE)}


def by_keypoints(count: int) -> Skeleton:
    """The set of so many keypoints. Raises ValueError for none."""
    for skeleton in SKELETONS.values():
        if len(skeleton.keypoints) == count:
            return skeleton
    raise ValueError(f"no known set has {count} keypoints")
