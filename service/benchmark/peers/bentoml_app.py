"""Serve the dense network with BentoML: one worker, images decoded before its adaptive batching."""

from typing import Any

import bentoml
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.benchmark.peers import dense

app = Starlette()


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 256})
@bentoml.asgi_app(app)
class Dense:
    def __init__(self) -> None:
        self.session = dense.load()
        app.add_route("/classify", self.classify, methods=["POST"])

    async def classify(self, request: Request) -> Any:
        form = await request.form()
        image: Any = form["image"]
        [result] = dense.run(self.session, np.stack([dense.decode(await image.read())]))
        return JSONResponse(result)
