import pytest

from models.skeleton import COCO, CROWDPOSE, FLIP_INDEX, SKELETONS, Skeleton


def test_a_mirror_swaps_left_and_right_of_coco():
    assert FLIP_INDEX == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def test_crowdpose_has_its_fourteen_joints():
    assert CROWDPOSE.flip_index == (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13)
    assert CROWDPOSE.keypoints[12:] == ("top_head", "neck")
    shared = set(CROWDPOSE.keypoints) & set(COCO.keypoints)
    assert len(shared) == 12
    for name in shared:
        assert CROWDPOSE.sigmas[CROWDPOSE.keypoints.index(name)] == COCO.sigmas[COCO.keypoints.index(name)]


@pytest.mark.parametrize("skeleton", SKELETONS.values())
def test_a_set_fits_itself(skeleton: Skeleton):
    names = skeleton.keypoints
    assert len(skeleton.sigmas) == len(set(names)) == len(names)
    for left, right in skeleton.flip_pairs:
        assert names[left].replace("left", "right") == names[right]
    assert {end for edge in skeleton.edges for end in edge} == set(range(len(names)))
