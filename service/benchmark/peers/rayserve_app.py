"""Serve the dense network with Ray Serve: one replica, queued images batched."""

import sys
import threading
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from service.benchmark.peers import dense


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Dense:
    def __init__(self) -> None:
        self.session = dense.load()

    @serve.batch(max_batch_size=dense.MAX_BATCH, batch_wait_timeout_s=0.002)
    async def run(self, images: list[Any]) -> list[dict[str, float]]:
        return dense.run(self.session, np.stack(images))

    async def __call__(self, request: Request) -> Any:
        form = await request.form()
        return await self.run(dense.decode(await form["image"].read()))


if __name__ == "__main__":
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Dense.bind(), route_prefix="/classify")
    threading.Event().wait()
