"""The progress bar of a training."""

from dataclasses import replace

import pytest
import torch

from models.training.recipes import find_recipe
from models.training.state import Progress
from service.cli.training.progress_bar import TrainingBar, epoch_of
from service.telemetry.training_metrics import TrainingMetrics


def test_the_bar_shows_epoch_step_loss_accuracy_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(find_recipe("short", "plain"), epochs=3)
    bar = TrainingBar("dense network", TrainingMetrics("cifar10_resnet_38"))
    for step in (3, 4, 5, 6):
        bar.stepped(recipe, step, 6, 8, 0.1, Progress(step=step, images=8, sums=torch.tensor([4.0, 6.0, 8.0])))
    output = capsys.readouterr().out
    assert "dense network, epoch 3 of 3: 100%" in output and "step 6 of 6 [" in output
    assert "left, loss 0.500, accuracy 75.0%]\n" in output
    assert bar.bar is None


def test_the_epoch_is_that_of_the_step() -> None:
    recipe = replace(find_recipe("short", "plain"), epochs=3)
    assert [epoch_of(recipe, step, 6) for step in (1, 2, 3, 6)] == [
        "epoch 1 of 3", "epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3",
    ]  # fmt: skip
    assert epoch_of(find_recipe("paper", "plain"), 1, 64_000) == "64,000 steps"
