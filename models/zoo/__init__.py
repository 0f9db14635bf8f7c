"""Pairs of networks by name or folder."""

from models.zoo.pairs import (
    Manifest,
    Pair,
    PairError,
    load_detector,
    load_estimator,
    load_pair,
    load_router,
    pair_folder,
    read_manifest,
    read_weights,
    save_weights,
)

__all__ = [
    "Manifest",
    "Pair",
    "PairError",
    "load_detector",
    "load_estimator",
    "load_pair",
    "load_router",
    "pair_folder",
    "read_manifest",
    "read_weights",
    "save_weights",
]
