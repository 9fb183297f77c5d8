"""The trainable weights of a stage, the gates at its start, and its optimiser."""

import torch

from models.network import SkipNet
from models.training.recipes import Recipe
from models.training.stages.gate_readout import scale_gate_logits, set_gate_bias


def choose_trainable(network: SkipNet, recipe: Recipe) -> None:
    """Make all weights trainable, or only those of the gates."""
    network.requires_grad_(not recipe.freeze_backbone)
    for gates in (network.gates, network.controller):
        if gates is not None:
            gates.requires_grad_(True)


def initialise_gates(network: SkipNet, recipe: Recipe) -> None:
    """Set the gates' bias and scale their logits as the recipe says, at the start of a stage."""
    if recipe.gate_bias_init:
        set_gate_bias(network, recipe.gate_bias_init)
    if recipe.gate_logit_scale != 1:
        scale_gate_logits(network, recipe.gate_logit_scale)


def make_optimizer(network: SkipNet, recipe: Recipe) -> torch.optim.SGD:
    """Build SGD with momentum 0.9 for the trainable weights. Vectors have a separate weight decay."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    fused = True if matrices[0].is_cuda else None
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": recipe.weight_decay if recipe.decay_all else 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=recipe.nesterov, fused=fused)
