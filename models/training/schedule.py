"""The learning rate and the progress of target-rate annealing, as functions of the step."""

import math

from models.training.recipes import Recipe

RISE = 0.15
"""The share of a one-cycle schedule in which the learning rate rises."""


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


def annealing_progress(recipe: Recipe, step: int, steps: int) -> float:
    """Return the progress of annealing: at 0 every target rate is 1, at 1 it is the operating point's."""
    begin, end = recipe.target_annealing
    if end <= begin:
        return float(step / steps >= begin)
    return min(max((step / steps - begin) / (end - begin), 0.0), 1.0)
