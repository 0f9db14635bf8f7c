"""The networks of the DynPose paper's tables, with what others have published of them.

All take 256 x 192 crops and were trained on COCO by MMPose, whose files are at
https://download.openmmlab.com/mmpose/; the hexadecimal digits in a file's name begin its sha256.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from models.codec import Method
from models.zoo.networks.convnets import MobileNetV2, ResNet, ShuffleNetV2
from models.zoo.networks.heads import DeconvHead, PointwiseHead, PoseNetwork, SimpleHead
from models.zoo.networks.hrnet import HRNet
from models.zoo.networks.swin import SwinL
from models.zoo.networks.vit import ViT


@dataclass(frozen=True)
class NetworkSpec:
    """`build` takes the number of keypoints.

    codec: of `models.codec`; `dark_udp` goes with the UDP crop and an unshifted flip.
    mmengine_gmacs: what MMEngine's counter gives. It leaves out fused attention and adds norms and up-sampling.
    paper_gmacs: what the paper prints, None where it does not name the network.
    ap: COCO val, detector boxes (56.4 human AP), flip, as MMPose's tables have it.
    weights: MMPose's file, below the address above.
    """

    build: Callable[[int], nn.Module]
    codec: Method
    mmengine_gmacs: float
    paper_gmacs: float | None
    ap: float
    weights: str


def _resnet(depth: int) -> Callable[[int], nn.Module]:
    return lambda keypoints: PoseNetwork(ResNet(depth), DeconvHead(ResNet.CHANNELS, keypoints, 3))


def _hrnet(width: int) -> Callable[[int], nn.Module]:
    return lambda keypoints: PoseNetwork(HRNet(width), PointwiseHead(width, keypoints))


def _vitpose(channels: int, depth: int, heads: int) -> Callable[[int], nn.Module]:
    return lambda keypoints: PoseNetwork(ViT(channels, depth, heads), DeconvHead(channels, keypoints, 2))


def _simple(channels: int, depth: int, heads: int) -> Callable[[int], nn.Module]:
    return lambda keypoints: PoseNetwork(ViT(channels, depth, heads), SimpleHead(channels, keypoints))


def _mobilenetv2(keypoints: int) -> nn.Module:
    return PoseNetwork(MobileNetV2(), DeconvHead(MobileNetV2.CHANNELS, keypoints, 3))


def _shufflenetv2(keypoints: int) -> nn.Module:
    return PoseNetwork(ShuffleNetV2(), DeconvHead(ShuffleNetV2.CHANNELS, keypoints, 3))


def _swin_l(keypoints: int) -> nn.Module:
    return PoseNetwork(SwinL(), DeconvHead(SwinL.CHANNELS, keypoints, 3))


def _weights(config: str, stamp: str) -> str:
    return f"v1/body_2d_keypoint/topdown_heatmap/coco/td-hm_{config}-210e_coco-256x192-{stamp}.pth"


def _msra(
    build: Callable[[int], nn.Module], mmengine: float, paper: float, ap: float, weights: str
) -> NetworkSpec:
    return NetworkSpec(build, "quarter", mmengine, paper, ap, weights)


def _udp(
    build: Callable[[int], nn.Module], mmengine: float, paper: float | None, ap: float, size: str, stamp: str
) -> NetworkSpec:
    weights = _weights(f"ViTPose-{size}_8xb64", stamp)
    return NetworkSpec(build, "dark_udp", mmengine, paper, ap, weights)


_MOBILENETV2 = _weights("mobilenetv2_8xb64", "55a04c35_20221016")
_SHUFFLENETV2 = _weights("shufflenetv2_8xb64", "51fb931e_20221014")
_SWIN_L = "top_down/swin/swin_l_p4_w7_coco_256x192-642a89db_20220705.pth"
_S, _B, _L, _H = (384, 12, 12), (768, 12, 12), (1024, 24, 16), (1280, 32, 16)

SPECS = {
    "mobilenetv2": _msra(_mobilenetv2, 1.580, 1.58, 64.8, _MOBILENETV2),
    "shufflenetv2": _msra(_shufflenetv2, 1.368, 1.37, 60.2, _SHUFFLENETV2),
    "resnet50": _msra(_resnet(50), 5.450, 5.45, 71.8, _weights("res50_8xb64", "04af38ce_20220923")),
    "resnet101": _msra(_resnet(101), 9.097, 9.01, 72.8, _weights("res101_8xb64", "065d3625_20220926")),
    "resnet152": _msra(_resnet(152), 12.746, 12.75, 73.6, _weights("res152_8xb32", "0345f330_20220928")),
    "hrnet-w32": _msra(_hrnet(32), 7.685, 7.69, 74.9, _weights("hrnet-w32_8xb64", "81c58e40_20220909")),
    "hrnet-w48": _msra(_hrnet(48), 15.746, 15.75, 75.6, _weights("hrnet-w48_8xb32", "0e67c616_20220913")),
    "swin-l": _msra(_swin_l, 40.963, 40.96, 74.3, _SWIN_L),
    "vitpose-s": _udp(_vitpose(*_S), 5.265, None, 73.9, "small", "62d7a712_20230314"),
    "vitpose-s-simple": _udp(_simple(*_S), 4.328, None, 73.6, "small-simple", "4c101a76_20230314"),
    "vitpose-b": _udp(_vitpose(*_B), 17.864, None, 75.7, "base", "216eae50_20230314"),
    "vitpose-b-simple": _udp(_simple(*_B), 16.810, None, 75.6, "base-simple", "0b8234ea_20230407"),
    "vitpose-l": _udp(_vitpose(*_L), 59.807, 58.68, 78.2, "large", "53609f55_20230314"),
    "vitpose-l-simple": _udp(_simple(*_L), 58.675, None, 78.0, "large-simple", "3a7ee9e1_20230314"),
    "vitpose-h": _udp(_vitpose(*_H), 122.892, None, 78.8, "huge", "e32adcd4_20230314"),
    "vitpose-h-simple": _udp(_simple(*_H), 121.682, None, 78.9, "huge-simple", "ffd48c05_20230314"),
}

NETWORKS = tuple(SPECS)


def build_network(name: str, keypoints: int = 17) -> nn.Module:
    """(N, 3, 256, 192) normalised crops -> (N, keypoints, 64, 48) heatmaps, with random weights. Any other multiple of
    32 will do as well, but for ViTPose. Raises KeyError for a name that is not in NETWORKS."""
    return SPECS[name].build(keypoints)


def count_macs(network: nn.Module, size: tuple[int, int] = (192, 256)) -> int:
    """Multiply-accumulates of one crop of `size` (width, height) in convolutions and matrix products, attention's
    included.

    network: on the meta device, where nothing is computed; and the counter knows no fused attention of the CPU.
    """
    from torch.utils.flop_counter import FlopCounterMode  # with Triton, which serving does without

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.empty(1, 3, size[1], size[0], device="meta"))
    return int(counter.get_total_flops()) // 2
