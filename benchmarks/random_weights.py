"""A network with random weights, to measure how fast one is whose trained weights are not at hand.

python -m benchmarks.random_weights hrnet-w32 large.safetensors
LARGE=hrnet-w32=large.safetensors make serve
"""

import argparse
from pathlib import Path

import torch

from models.zoo.networks import NETWORKS, build_network
from models.zoo.pairs import save_weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a network with random weights.")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    save_weights(build_network(options.network), options.file)


if __name__ == "__main__":
    main()
