"""Hybrid reinforcement learning (SkipNet, section 3.2): REINFORCE for the gates, cross-entropy for the rest.

REINFORCE needs no gradient through a skipped block, so the sampled route really skips while it trains: each block
computes just the images that execute it. Batch norm keeps its running statistics, unless the recipe says otherwise
(`Recipe.statistics`).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

from models.network import RunBlock, SkipNet
from models.training.objective import Step, classification_loss
from models.training.recipes import Recipe
from models.training.stages.skipping import run_executed


@torch.no_grad()
def re_estimate_statistics(network: SkipNet, batches: Iterable[Tensor]) -> None:
    """Take batch norm's running statistics anew: the means over batches [N, 3, H, W] along the routes of inference."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        # torch's way to a plain mean. The first batch replaces what was there, which a block that never runs keeps.
        norm.num_batches_tracked, norm.momentum = torch.tensor(0), None
    for images in batches:
        half = torch.full((len(images), network.decision_count), 0.5, device=images.device)
        sampled_forward(network, images, half, run_executed)
    for norm, usual in zip(norms, momentum, strict=True):
        norm.momentum = usual


def sampled_forward(network: SkipNet, images: Tensor, uniform: Tensor, run: RunBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Run images [N, 3, H, W] along routes sampled from the gates, each block by ``run``.

    ``uniform`` [N, B-1], drawn from 0..1, decides: a block runs where it lies below the gate's probability.
    Returns class logits [N, classes], gate logits [N, B-1] and decisions [N, B-1].
    """

    def decide(index: int, logits: Tensor) -> Tensor:
        return uniform[:, index] < torch.sigmoid(logits.detach())

    # The policy gradient alone trains the gates: what they read is given to them, not taught by them.
    logits, routing = network(images, decide, run, detach_gates=True)
    return logits, routing.logits, routing.decisions


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


def policy_loss(log_probability: Tensor, action_returns: Tensor, samples: int) -> Tensor:
    """Return the loss of actions whose log-probabilities and returns are [samples * N, actions] (REINFORCE)."""
    return -(log_probability * advantages(action_returns, samples)).sum(1).mean()


def hybrid_loss(
    logits: Tensor,
    labels: Tensor,
    log_probability: Tensor,
    decisions: Tensor,
    recipe: Recipe,
    teacher_logits: Tensor | None,
) -> Tensor:
    """Return the loss of the answers along the sampled routes plus the weighted policy loss (paper, equation 6)."""
    losses = cross_entropy(logits, labels, reduction="none")
    policy = policy_loss(log_probability, returns(losses, decisions, recipe.alpha), recipe.samples)
    return classification_loss(logits, labels, teacher_logits, recipe) + recipe.policy_weight * policy


def pure_loss(
    logits: Tensor, labels: Tensor, log_probability: Tensor, decisions: Tensor, recipe: Recipe, drawn: Tensor
) -> Tensor:
    """Return the loss of reinforcement learning alone: the class too is drawn, by ``drawn`` [N, 1] from 0..1.

    A wrong class costs 1, and that is all that the network is told of its answer.
    """
    classes = log_softmax(logits.float(), 1)
    answer = (classes.detach().exp().cumsum(1) < drawn).sum(1).clamp(max=classes.shape[1] - 1)
    wrong = (answer != labels).float()
    actions = torch.cat((log_probability, classes.gather(1, answer[:, None])), 1)
    earned = torch.cat((returns(wrong, decisions, recipe.alpha), -wrong[:, None]), 1)
    return policy_loss(actions, earned, recipe.samples)


def draw(images: int, gates: int, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Return what a step's actions are drawn by, from 0..1: [samples * images, gates], the class's behind where
    reinforcement learning is ``pure``.
    """
    return torch.rand(recipe.samples * images, gates + recipe.pure, generator=random)


def reinforce_step(
    network: SkipNet,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    uniform: Tensor,
    run: RunBlock = run_executed,
    teacher_logits: Tensor | None = None,
) -> Step:
    """Return what a batch gives along routes sampled from the gates, ``recipe.samples`` of them an image.

    ``uniform`` is of `draw`; ``teacher_logits`` are [N, classes].
    """
    images, labels = images.repeat(recipe.samples, 1, 1, 1), labels.repeat(recipe.samples)
    teacher_logits = None if teacher_logits is None else teacher_logits.repeat(recipe.samples, 1)
    images = images.contiguous(memory_format=torch.channels_last)
    logits, gate_logits, decisions = sampled_forward(network, images, uniform, run)
    log_probability = torch.where(decisions, logsigmoid(gate_logits), logsigmoid(-gate_logits))
    if recipe.pure:
        loss = pure_loss(logits, labels, log_probability, decisions, recipe, uniform[:, -1:])
    else:
        loss = hybrid_loss(logits, labels, log_probability, decisions, recipe, teacher_logits)
    return Step(
        loss,
        (logits.argmax(1) == labels).sum(),
        ((1 + decisions.sum(1)) / (1 + decisions.shape[1])).sum(),
    )
