"""The learning rate and the computation target, as functions of the step."""

import math

from models.training.recipes import Recipe

RISE = 0.15
TARGET_BEGINS, TARGET_REACHED = 0.2, 0.6


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of step ``step`` (from 0) of ``steps``."""
    progress = step / steps
    if recipe.schedule == "one_cycle":
        if progress < RISE:
            return recipe.rate * (step + 1) / math.ceil(steps * RISE)
        return recipe.rate * (1 + math.cos(math.pi * (progress - RISE) / (1 - RISE))) / 2
    if step < recipe.warm_up:
        return recipe.rate / 10
    if recipe.schedule == "steps":
        return recipe.rate / (1 if progress < 0.5 else 10 if progress < 0.75 else 100)
    return recipe.rate


def computation_target(recipe: Recipe, step: int, steps: int) -> float:
    """Return the executed share of the blocks that step ``step`` may use for free, falling from 1 to the target."""
    if recipe.target is None:
        return 1.0
    fallen = (step / steps - TARGET_BEGINS) / (TARGET_REACHED - TARGET_BEGINS)
    return 1 - (1 - recipe.target) * min(max(fallen, 0.0), 1.0)
