import pytest
import torch

from models.architectures import UnknownArchitecture, catalogue, find_architecture
from models.macs import count_macs

CATALOGUE = catalogue()
# The paper, section 4.1, and He et al. 2016: MACs of the plain networks, in millions.
DENSE_MACS = {"cifar10_resnet_38": 83.3, "cifar10_resnet_74": 168.2, "cifar10_resnet_110": 253.1}


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_architecture_runs_and_counts(name: str) -> None:
    architecture = CATALOGUE[name]
    network = architecture.build().eval()
    size = 32 if architecture.stem == "cifar" else 64
    with torch.inference_mode():
        logits, routing = network(torch.randn(1, 3, size, size))
    blocks = sum(architecture.blocks)
    assert logits.shape == (1, architecture.classes)
    assert routing.decisions.shape == (1, blocks - 1 if architecture.gates else 0)
    counts = count_macs(network, size, size)
    assert len(counts.blocks) == blocks and min(counts.blocks) > 0
    assert sum(projection > 0 for projection in counts.projections) == (
        2 if architecture.stem == "cifar" else 3 + (architecture.block == "bottleneck")
    )
    assert len(counts.gates) == (blocks - 1 if architecture.gates else 0)


STATIC = [(f"cifar10_resnet_{depth}", depth) for depth in (14, 20, 26, 32)]


@pytest.mark.parametrize(("name", "layers"), [("cifar10_rnn_gate_38", 38), ("imagenet_rnn_gate_50", 50), *STATIC])
def test_the_name_gives_the_depth(name: str, layers: int) -> None:
    architecture = CATALOGUE[name]
    network = architecture.build()
    assert sum(architecture.blocks) * network.layers_per_block + 2 == layers


@pytest.mark.parametrize(("name", "millions"), DENSE_MACS.items())
def test_dense_macs_are_the_papers(name: str, millions: float) -> None:
    counts = count_macs(CATALOGUE[name].build(), 32, 32)
    assert counts.dense / 1e6 == pytest.approx(millions, abs=0.1)
    assert counts.unconditional == counts.dense - sum(counts.blocks[1:])


def test_a_plain_resnet_may_be_named_by_its_blocks() -> None:
    architecture = find_architecture("cifar100_resnet_2-3-4")
    assert (architecture.blocks, architecture.gates, architecture.classes) == ((2, 3, 4), None, 100)
    same = count_macs(find_architecture("cifar10_resnet_3-3-3").build(), 32, 32)
    assert same == count_macs(CATALOGUE["cifar10_resnet_20"].build(), 32, 32)
    for name in ("cifar10_resnet_2-3", "cifar10_resnet_0-3-4", "cifar10_rnn_gate_2-3-4"):
        with pytest.raises(UnknownArchitecture, match=name):
            find_architecture(name)


def test_misspelt_public_names_are_understood() -> None:
    assert find_architecture("cifar10_feedfoward_rl_38").name == "cifar10_feedforward_rl_38"


def test_networks_of_more_than_100_layers_have_ff_gate_2() -> None:
    assert CATALOGUE["cifar10_feedforward_74"].gates == "feedforward_1"
    assert CATALOGUE["cifar10_feedforward_110"].gates == "feedforward_2"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownArchitecture, match=r"imagenet_.*_\{18,34,50,101,152\}"):
        find_architecture("cifar10_rnn_gate_39")
