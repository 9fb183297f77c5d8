"""The learning rate and the target rates over a run."""

from dataclasses import replace

import pytest

from models.training.recipes import find_recipe
from models.training.schedule import annealing_progress, learning_rate


def test_the_schedule_of_the_paper() -> None:
    recipe = find_recipe("paper", "sp")
    rates = [learning_rate(recipe, step, 64_000) for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_target_rates_are_annealed_between_a_fifth_and_three_fifths() -> None:
    recipe = find_recipe("budget", "sp")
    progress = [annealing_progress(recipe, step, 100) for step in (0, 20, 40, 60, 99)]
    assert progress == pytest.approx([0, 0, 0.5, 1, 1])
    at_once = replace(recipe, target_annealing=(0.1, 0.1))
    assert [annealing_progress(at_once, step, 100) for step in (0, 9, 10, 99)] == [0, 0, 1, 1]
