"""How good a pose net is while it trains: OKS on labelled boxes, through the service's own estimator."""

import numpy as np
import torch
from torch import Tensor

from calibration.okd import oks
from models.estimator import PoseEstimator
from models.tinypose import TinyPose
from training.people import Sample


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
        similarity = oks(
            torch.cat(predicted).numpy()[:, :, :2],
            np.stack([s.keypoints for s in chosen]),
            np.stack([s.weights for s in chosen]),
            np.array([s.area for s in chosen]),
        )
        results[f"{source}_oks"] = round(float(similarity.mean()), 4)
        results[f"{source}_ar"] = round(float((similarity[:, None] > np.arange(0.5, 0.96, 0.05)).mean()), 4)
    return results
