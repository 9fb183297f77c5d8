"""Hybrid reinforcement learning (SkipNet, section 3.2): REINFORCE for the gates, cross-entropy for the rest.

REINFORCE needs no gradient through a skipped block. So each block computes only the images that execute it, in
training too. Batch norm uses and keeps its running statistics by default (`Recipe.statistics`).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

from models.network import RunBlock, SkipNet
from models.training.distributed.batch import global_batch
from models.training.distributed.group import share
from models.training.objective import Step, classification_loss
from models.training.recipes import Recipe
from models.training.stages.skipping import run_executed


@torch.no_grad()
def re_estimate_statistics(network: SkipNet, batches: Iterable[Tensor]) -> None:
    """Estimate batch norm's running statistics again, as means over batches float32 [N, 3, H, W].

    The images take the routes of inference. A block that no image executes keeps its statistics.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        # Without a momentum, torch computes the plain mean over all batches. The first batch replaces the old values.
        norm.num_batches_tracked, norm.momentum = torch.tensor(0), None
    for images in batches:
        half = torch.full((len(images), network.decision_count), 0.5, device=images.device)
        sampled_forward(network, images, half, run_executed)
    for norm, usual in zip(norms, momentum, strict=True):
        norm.momentum = usual


def sampled_forward(network: SkipNet, images: Tensor, uniform: Tensor, run: RunBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Run images [N, 3, H, W] along routes sampled from the gates. ``run`` computes a block.

    A block is executed if ``uniform`` [N, B-1], drawn from 0..1, is below the gate's probability. Return class logits
    [N, classes], gate logits [N, B-1] and decisions bool [N, B-1].
    """

    def decide(index: int, logits: Tensor) -> Tensor:
        return uniform[:, index] < torch.sigmoid(logits.detach())

    # The policy gradient trains the gates only, not the features that they read.
    logits, routing = network(images, decide, run, detach_gates=True)
    return logits, routing.logits, routing.decisions


def returns(cross_entropies: Tensor, decisions: Tensor, alpha: float) -> Tensor:
    """Compute the return of each gate [N, B-1]: the rewards of this gate and the later ones, less the image's loss.

    Paper, equation 5, with gamma 1. The reward for a skipped block is alpha / (B - 1). ``cross_entropies`` is [N].
    """
    rewards = alpha / decisions.shape[1] * (~decisions).float()
    to_come = rewards.flip(1).cumsum(1).flip(1)
    return to_come - cross_entropies.detach()[:, None]


def advantages(gate_returns: Tensor, samples: int) -> Tensor:
    """Return gate returns [samples * N, B-1] less their baseline.

    With several samples of an image, the baseline is the mean return of its other samples, which removes the effect of
    the image's difficulty. With one sample, it is the mean return of the other images of the batch.
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
    """Return the classification loss along the sampled routes plus the weighted policy loss (paper, equation 6)."""
    losses = cross_entropy(logits, labels, reduction="none")
    policy = policy_loss(log_probability, returns(losses, decisions, recipe.alpha), recipe.samples)
    return classification_loss(logits, labels, teacher_logits, recipe) + recipe.policy_weight * policy


def pure_loss(
    logits: Tensor, labels: Tensor, log_probability: Tensor, decisions: Tensor, recipe: Recipe, drawn: Tensor
) -> Tensor:
    """Return the loss of reinforcement learning alone, which samples the class too.

    ``drawn`` [N, 1] from 0..1 selects the class from its distribution. A wrong class costs 1. The label has no other
    effect on the loss.
    """
    classes = log_softmax(logits.float(), 1)
    sampled = (classes.detach().exp().cumsum(1) < drawn).sum(1).clamp(max=classes.shape[1] - 1)
    wrong = (sampled != labels).float()
    actions = torch.cat((log_probability, classes.gather(1, sampled[:, None])), 1)
    action_returns = torch.cat((returns(wrong, decisions, recipe.alpha), -wrong[:, None]), 1)
    return policy_loss(actions, action_returns, recipe.samples)


def draw(count: int, gates: int, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Return uniform random numbers in 0..1 that select the actions of a step, float32 [samples * images, gates].

    If the recipe is ``pure``, one more column selects the class.
    """
    return torch.rand(recipe.samples * count, gates + recipe.pure, generator=random)


def reinforce_step(
    network: SkipNet,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    uniform: Tensor,
    run: RunBlock = run_executed,
    teacher_logits: Tensor | None = None,
) -> Step:
    """Run a process's share of a batch along sampled routes, and return the loss and the sums.

    Each image takes ``recipe.samples`` routes.

    ``uniform`` is the result of `draw` for the global batch. ``teacher_logits`` are [N, classes]. Loss and sums are
    those of the global batch.
    """
    labels = global_batch(labels).repeat(recipe.samples)
    teacher_logits = None if teacher_logits is None else global_batch(teacher_logits).repeat(recipe.samples, 1)
    images = images.repeat(recipe.samples, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    outputs = sampled_forward(network, images, share().take(uniform, recipe.samples), run)
    logits, gate_logits, decisions = (global_batch(output, recipe.samples) for output in outputs)
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
