"""What most teams write: FastAPI around PyTorch as it is, the large net for everybody, one crop at a time.

Pillow decodes, the networks run eagerly in float32 on PyTorch's own number of threads, and a request is served when the
one before it is done.
"""

from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from benchmarks.servers.answers import answer, parse
from benchmarks.stages import open_pair
from calibration.data import decode
from models.defaults import MIN_SCORE
from models.zoo import Pair


def create_app(pair: Pair) -> FastAPI:
    app = FastAPI()

    @app.post("/pose")
    async def pose(request: Request) -> dict[str, Any]:
        picture = decode(await request.body()).to(pair.device)
        (boxes,) = pair.detector([picture], [MIN_SCORE])
        return answer(boxes, [pair.large([picture], box[None, :4])[0] for box in boxes])

    return app


if __name__ == "__main__":
    options = parse()
    app = create_app(open_pair(options.pair, precision="fp32", runtime="eager"))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")
