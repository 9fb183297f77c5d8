"""The progress bar of a training: epoch, step, loss, accuracy and time left."""

import sys
import time
from typing import TYPE_CHECKING, Any

from models.errors import needs_extra

if TYPE_CHECKING:
    from models.training.recipes import Recipe
    from models.training.state import Progress
    from models.training.types import Watcher

INTERVAL = 1.0
"""Seconds between two readings of loss and accuracy. The host waits for the device to read them."""
FORMAT = "{desc}: {percentage:3.0f}%|{bar:20}| step {n_fmt} of {total_fmt} [{elapsed}, {remaining} left{postfix}]"


class TrainingBar:
    """A bar for each stage: a `models.training.types.Watcher` that also calls another watcher."""

    def __init__(self, title: str, inner: "Watcher") -> None:
        with needs_extra("training", "the progress bar"):
            from tqdm import tqdm

        self.tqdm, self.title, self.inner = tqdm, title, inner
        self.bar: Any = None
        self.read = 0.0

    def stepped(self, recipe: "Recipe", step: int, steps: int, count: int, rate: float, progress: "Progress") -> None:
        self.inner.stepped(recipe, step, steps, count, rate, progress)
        if self.bar is None:
            self.bar = self.tqdm(
                total=steps, initial=step - 1, unit="step", file=sys.stdout, mininterval=INTERVAL, bar_format=FORMAT
            )
        if time.monotonic() - self.read > INTERVAL or step == steps:
            self.bar.set_description_str(
                f"{self.title or recipe.stage}, {epoch_of(recipe, step, steps)}", refresh=False
            )
            self.bar.set_postfix_str(figures_of(progress), refresh=False)
            self.read = time.monotonic()
        self.bar.update()
        if step == steps:
            self.close()

    def close(self) -> None:
        """End the line of the bar, if one is drawn."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def logged(self, record: dict[str, Any]) -> None:
        self.inner.logged(record)


def epoch_of(recipe: "Recipe", step: int, steps: int) -> str:
    """Return the epoch of a step, or the step if the recipe's length is given in steps."""
    if recipe.iterations:
        return f"{recipe.iterations:,} steps"
    return f"epoch {(step - 1) * recipe.epochs // steps + 1} of {recipe.epochs}"


def figures_of(progress: "Progress") -> str:
    """Return the mean loss and accuracy of the epoch so far."""
    assert progress.sums is not None
    loss, correct, _ = (progress.sums / progress.images).tolist()
    return f"loss {loss:.3f}, accuracy {correct:.1%}"
