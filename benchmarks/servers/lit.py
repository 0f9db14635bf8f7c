"""The routed pair in LitServe: one LitAPI that batches pictures, a worker process for each core.

Each worker decodes, detects, scores and estimates the pictures of its batch, the people of all of them together, with
the same networks, runtime and split as the service's.
"""

import os
from typing import Annotated, Any

import litserve
from fastapi import Body
from torch import Tensor

from benchmarks.servers.answers import answer, parse
from benchmarks.stages import NETS, Stages, open_pair
from models.runtime import set_cpu_threads

P = 0.5
BATCH = 8
BATCH_TIMEOUT_S = 0.01
"""With 0 idle workers would poll without a pause, each on a whole core."""


class PoseApi(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, pair: str) -> None:
        super().__init__(api_path="/pose", max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S)
        self.pair = pair

    def setup(self, device: str) -> None:  # noqa: ARG002
        set_cpu_threads(1)
        self.stages = Stages(open_pair(self.pair), P, dict.fromkeys(NETS, BATCH))

    def decode_request(self, request: Annotated[bytes, Body()]) -> Tensor:
        return self.stages.decode(request)

    def predict(self, pictures: list[Tensor]) -> list[Any]:
        return self.stages.poses(pictures)

    def batch(self, inputs: list[Tensor]) -> list[Tensor]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return answer(*output)


if __name__ == "__main__":
    options = parse()
    server = litserve.LitServer(
        PoseApi(options.pair), accelerator="cpu", workers_per_device=os.cpu_count() or 1
    )
    server.run(port=options.port, host="127.0.0.1", generate_client_file=False, log_level="warning")
