"""Hybrid reinforcement learning (SkipNet, section 3.2): REINFORCE for the gates, cross-entropy for the rest.

REINFORCE needs no gradient through a skipped block, so the sampled route really skips while it trains: each block
computes just the images that execute it. Batch norm keeps its running statistics (`freeze_statistics`), since
statistics taken from whichever images a sampled gate lets through are what makes the published code collapse.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from models.blocks import Block
from models.network import SkipNet
from models.training.objective import Step
from models.training.recipes import Recipe


def freeze_statistics(network: SkipNet) -> None:
    """Let batch norm use its running statistics and leave them as they are; its scale and shift still learn."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def sampled_forward(network: SkipNet, images: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run images [N, 3, H, W] along routes sampled from the gates, computing executed blocks only.

    ``uniform`` [N, B-1], drawn from 0..1, decides: a block runs where it lies below the gate's probability.
    Returns class logits [N, classes], gate logits [N, B-1] and decisions [N, B-1].
    """
    x = network.blocks[0](network.stem(images))
    state = None
    logits, decisions = [], []
    for index, block in enumerate(network.blocks[1:]):
        assert isinstance(block, Block)
        # The policy gradient alone trains the gates: what they read is given to them, not taught by them.
        logit, state = network.gate_logit(index, x.detach(), state)
        decision = uniform[:, index] < torch.sigmoid(logit.detach())
        x = run_executed(block, x, decision)
        logits.append(logit)
        decisions.append(decision)
    return network.classify(x), torch.stack(logits, 1), torch.stack(decisions, 1)


def run_executed(block: Block, x: Tensor, decision: Tensor) -> Tensor:
    """Return the block's output for images [N, C, H, W], computed only where ``decision`` [N] is true."""
    shortcut: Tensor = block.shortcut(x)
    active = decision.nonzero().squeeze(1)
    if len(active) == 0:
        return shortcut
    if len(active) == len(x):
        return block.execute(x, shortcut)
    return shortcut.index_copy(0, active, block.execute(x[active], shortcut[active]))


def returns(cross_entropies: Tensor, decisions: Tensor, alpha: float) -> Tensor:
    """Return each gate's return [N, B-1]: its own and later gates' reward for skipping, less the image's loss.

    Paper, equation 5, with gamma 1: a skipped block is worth alpha / (B - 1).
    """
    rewards = alpha / decisions.shape[1] * (~decisions).float()
    to_come = rewards.flip(1).cumsum(1).flip(1)
    return to_come - cross_entropies.detach()[:, None]


def advantages(gate_returns: Tensor, samples: int) -> Tensor:
    """Return gate returns [samples * N, B-1] less their baseline.

    With several samples an image the baseline is what its other samples earned, which takes the image's
    difficulty out; with one it is what the other images of the batch earned.
    """
    groups = gate_returns.reshape(samples, -1, gate_returns.shape[1])
    dimension = 0 if samples > 1 else 1
    count = groups.shape[dimension]
    others = (groups.sum(dimension, keepdim=True) - groups) / max(count - 1, 1)
    return (groups - others).reshape_as(gate_returns)


def reinforce_step(network: SkipNet, images: Tensor, labels: Tensor, recipe: Recipe, random: torch.Generator) -> Step:
    """Return the hybrid loss of a batch: cross-entropy along the sampled routes plus the weighted policy loss."""
    images, labels = images.repeat(recipe.samples, 1, 1, 1), labels.repeat(recipe.samples)
    images = images.contiguous(memory_format=torch.channels_last)
    uniform = torch.rand(len(images), network.decision_count, generator=random).to(images.device)
    logits, gate_logits, decisions = sampled_forward(network, images, uniform)
    losses = cross_entropy(logits, labels, reduction="none")
    advantage = advantages(returns(losses, decisions, recipe.alpha), recipe.samples)
    log_probability = torch.where(decisions, logsigmoid(gate_logits), logsigmoid(-gate_logits))
    policy_loss = -(log_probability * advantage).sum(1).mean()
    executions = decisions.float()
    return Step(
        losses.mean() + recipe.policy_weight * policy_loss,
        (logits.argmax(1) == labels).sum(),
        ((1 + executions.sum(1)) / (1 + executions.shape[1])).sum(),
        executions.sum(0),
    )
