"""How good a pose net is while it trains: OKS on labelled boxes, through the service's own estimator."""

import numpy as np
import torch
from torch import Tensor

from models.estimator import PoseEstimator
from models.skeleton import SIGMAS
from models.tinypose import TinyPose
from training.people import Sample


def similarity(predicted: np.ndarray, samples: list[Sample]) -> np.ndarray:
    """OKS (N,) of predicted keypoints (N, 17, 2+) with the annotated ones."""
    variances = (2 * np.array(SIGMAS)) ** 2
    scores = []
    for points, sample in zip(predicted, samples, strict=True):
        labelled = sample.weights > 0
        squared = ((points[:, :2] - sample.keypoints) ** 2).sum(axis=1)
        scores.append(np.exp(-squared / (2 * variances * max(sample.area, 1)))[labelled].mean())
    return np.array(scores)


def evaluate(
    network: TinyPose, size: tuple[int, int], samples: list[Sample], batch: int = 32
) -> dict[str, float]:
    """Per source, on given boxes: mean OKS and average recall (over OKS thresholds 0.50:0.05:0.95)."""
    device = next(network.parameters()).device

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        return network(crops.to(device, memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]

    estimator = PoseEstimator(run, input_size=size, codec="dark")
    results = {}
    for source in sorted({sample.source for sample in samples}):
        chosen = [sample for sample in samples if sample.source == source]
        predicted = [
            estimator([s.picture for s in part], torch.from_numpy(np.stack([s.bbox for s in part])))
            for part in (chosen[i : i + batch] for i in range(0, len(chosen), batch))
        ]
        oks = similarity(torch.cat(predicted).numpy(), chosen)
        results[f"{source}_oks"] = round(float(oks.mean()), 4)
        results[f"{source}_ar"] = round(float((oks[:, None] > np.arange(0.5, 0.96, 0.05)).mean()), 4)
    return results
