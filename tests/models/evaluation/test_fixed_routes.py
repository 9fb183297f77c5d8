import numpy as np
import pytest
import torch

from models.checkpoint import Checkpoint, FixedRoute, read_checkpoint
from models.engines import load_engine
from models.engines.protocol import Engine
from models.evaluation.fixed_routes import compare_fixed_routes, describe_routes, routing_pays
from models.preprocessing import prepare
from tests.service.parts import NAME, SPEC, picture, write_random


def load(checkpoint: Checkpoint) -> Engine:
    return load_engine(checkpoint, "torch", "cpu", 1, "branch")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("repository") / NAME / "1"
    write_random(folder, 0)
    return read_checkpoint(folder)


def test_routes_run_the_most_executed_blocks(checkpoint: Checkpoint) -> None:
    images = np.stack([prepare(picture(seed), SPEC) for seed in range(12)])
    threshold = checkpoint.config.execute_threshold
    routed = load(checkpoint).run(images, np.full(12, threshold, np.float32))
    # The routed network is correct for all images, so no fixed route can be more accurate.
    batches = [(torch.from_numpy(images), torch.from_numpy(routed.logits.argmax(1)))]
    routes = compare_fixed_routes(checkpoint, load, batches, threshold)
    mean = routed.executed.sum(1).mean()
    assert {int(mean), int(np.ceil(mean))} <= {route.blocks for route in routes}
    order = np.argsort(-routed.executed.mean(0), kind="stable")
    macs = checkpoint.macs
    for route in routes:
        blocks = [macs.blocks[1 + block] for block in order[: route.blocks]]
        assert route.macs == macs.stem + macs.blocks[0] + sum(blocks) + sum(macs.projections) + macs.head
        assert route.gain == pytest.approx(1 - route.accuracy)
        assert 0 <= route.gain_error < 1


def route(macs: int, gain: float, error: float) -> FixedRoute:
    return FixedRoute(blocks=8, accuracy=0.9, macs=macs, gain=gain, gain_error=error)


@pytest.mark.parametrize(
    ("routes", "pays"),
    [
        ([route(90, 0.01, 0.004)], True),
        ([route(90, 0.01, 0.006)], False),
        ([route(90, 0.01, 0.004), route(80, 0.0, 0.001)], False),
        ([route(90, 0.01, 0.004), route(120, 0.0, 0.001)], True),
    ],
)
def test_routing_pays_if_it_beats_every_route_of_its_cost(routes: list[FixedRoute], pays: bool) -> None:
    assert routing_pays(100, routes) is pays
    assert ("is not more accurate" in describe_routes(100, routes)) is not pays
