"""The pose networks of the paper's tables by name."""

from models.zoo.networks.specs import NETWORKS, SPECS, NetworkSpec, build_network, count_macs

__all__ = ["NETWORKS", "SPECS", "NetworkSpec", "build_network", "count_macs"]
