"""Pairs of networks by name or folder."""

from models.zoo.errors import PairError
from models.zoo.pairs import (
    DetectorEntry,
    EstimatorEntry,
    Manifest,
    Pair,
    load_detector,
    load_estimator,
    load_pair,
    load_router,
    named_entry,
    pair_folder,
    read_manifest,
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
