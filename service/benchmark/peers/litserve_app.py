"""Serve the dense network with LitServe: images decoded in its request hook, queued ones batched."""

import sys
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from service.benchmark.peers import dense


class Dense(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.session = dense.load()

    def decode_request(self, request: Request) -> Any:
        # LitServe passes the parsed form.
        return dense.decode(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return dense.run(self.session, x)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    api = Dense(max_batch_size=dense.MAX_BATCH, batch_timeout=0.002, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
