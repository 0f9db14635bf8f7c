"""The routed pair in Ray Serve, as its documentation composes models: a deployment for each network, `@serve.batch` in
each, and an ingress that decodes, asks the detector, then for every person the router and the net of the route.

A picture is put into the object store once. The networks, the runtime and the split are the service's; batching,
queues and HTTP are Ray's.
"""

import asyncio
import os
import signal
import threading
import warnings
from typing import Any

os.environ.setdefault(
    "RAY_USAGE_STATS_ENABLED", "0"
)  # before Ray is imported: nothing is reported to anybody

import numpy as np
import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from app.decode import decode
from app.policy import Route, SplitPolicy
from benchmarks.servers.answers import answer, parse
from benchmarks.stages import open_pair
from calibration.thresholds import read_calibration
from models.defaults import MIN_SCORE, POLICY, THETA
from models.runtime import set_cpu_threads
from models.zoo import read_manifest

P = 0.5
BATCH = 8
WAIT_S = 0.01
# Six processes share the cores, as the service's threads do.
SMALL_SHARE: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 1000}


class Network:
    """One network of the pair: `detector`, `router`, `small` or `large`."""

    def __init__(self, pair: str, role: str) -> None:
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        set_cpu_threads(1)
        self.network = getattr(open_pair(pair), role)
        self.role = role

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)  # type: ignore[untyped-decorator]
    async def __call__(self, pictures: list[np.ndarray], boxes: list[np.ndarray | None]) -> list[Any]:
        """A picture (H, W, 3) and, but for the detector, a box (5,) x, y, w, h, score."""
        tensors = [torch.from_numpy(picture) for picture in pictures]
        if self.role == "detector":
            return [rows.numpy() for rows in self.network(tensors, [MIN_SCORE] * len(tensors))]
        rows = torch.tensor(np.stack([box for box in boxes if box is not None]))
        if self.role == "router":
            difficulties, known = self.network.with_keypoints(tensors, rows[:, :4], rows[:, 4])
            poses = [None] * len(rows) if known is None else list(known.numpy())
            return list(zip(difficulties.tolist(), poses, strict=True))
        return list(self.network(tensors, rows[:, :4]).numpy())


class Ingress:
    def __init__(self, pair: str, detector: Any, router: Any, small: Any, large: Any) -> None:
        self.detector, self.router, self.small, self.large = detector, router, small, large
        manifest = read_manifest(pair)
        scores = read_calibration(manifest.calibration_path).scores
        self.policy = SplitPolicy(scores, p=P, theta=THETA, mode="tracking", policy=POLICY)

    async def __call__(self, request: Request) -> dict[str, Any]:
        pixels = await asyncio.to_thread(decode, await request.body())
        picture = ray.put(pixels.numpy())
        boxes = await self.detector.remote(picture, None)
        keypoints = await asyncio.gather(*(self.person(picture, box) for box in boxes))
        return answer(torch.tensor(boxes), [torch.tensor(points) for points in keypoints])

    async def person(self, picture: Any, box: np.ndarray) -> np.ndarray:
        difficulty, keypoints = await self.router.remote(picture, box)
        route = self.policy.snapshot.route(difficulty)
        self.policy.observe(difficulty, route, own_p=True)
        if route is Route.hard or keypoints is None:
            keypoints = await (self.large if route is Route.hard else self.small).remote(picture, box)
        found: np.ndarray = keypoints
        return found


def main() -> None:
    options = parse()
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=options.port),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    networks = [
        serve.deployment(name=role, **SMALL_SHARE)(Network).bind(options.pair, role)
        for role in ("detector", "router", "small", "large")
    ]
    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.set())
    ingress = serve.deployment(**SMALL_SHARE)(Ingress).bind(options.pair, *networks)
    serve.run(ingress, route_prefix="/pose")
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
