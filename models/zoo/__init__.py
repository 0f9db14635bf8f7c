"""Pairs of networks by name or folder."""

from models.zoo.errors import PairError
from models.zoo.manifest import (
    DetectorEntry,
    EstimatorEntry,
    Manifest,
    named_entry,
    pair_folder,
    read_manifest,
)
from models.zoo.pairs import (
    Pair,
    load_detector,
    load_estimator,
    load_pair,
    load_router,
    read_weights,
    save_weights,
)

__all__ = [
    "DetectorEntry",
    "EstimatorEntry",
    "Manifest",
    "Pair",
    "PairError",
    "load_detector",
    "load_estimator",
    "load_pair",
    "load_router",
    "named_entry",
    "pair_folder",
    "read_manifest",
    "read_weights",
    "save_weights",
]
