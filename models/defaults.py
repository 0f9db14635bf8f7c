"""Numbers that the service and the offline commands must agree on. Sizes are (width, height) in pixels."""

from typing import Literal

PADDING = 1.25
"""A crop covers the bbox enlarged by this factor."""

ASPECT = 0.75
"""Width over height of a crop."""

ROUTER_SIZE = (192, 256)
DETECTOR_SIZE = 512

MIN_SCORE = 0.35
"""Detections below this score are dropped."""

NMS_IOU = 0.6
MAX_PEOPLE = 100
"""People of one picture that are kept, the highest scores first."""

MAX_DETECTIONS = 300
"""Those that a detector finds at most, likewise."""

RESCORING_SCORE = 0.2
"""A joint below this says nothing about how good the pose is (COCO's usual rescoring)."""

P = 0.5
"""Share of people sent to the large network."""

THETA = 0.1
"""Eq. 7: where in the range of scores k1 lies."""

MODE: Literal["fixed", "tracking"] = "tracking"
POLICY: Literal["band", "top"] = "top"
