"""A row of `skipnet reproduce`: one stage of training."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

from models.training.recipes import Stage, typed_values

Schedule = Literal["paper", "short"]
Group = Literal["table", "ablations", "recipe", "grown", "distilled-long", "static"]

TEACHER_NETWORKS = ("small", "small-logits", "large", "large-logits")
"""Teachers other than rows: a network of `models.training.distillation` as an online teacher, or its logits."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Row:
    """One stage of training.

    ``routing`` is the architecture's name without data set and depth. ``changes`` replace values of ``recipe``.

    A run starts from the checkpoint of the row ``start``, trained with the same seed or with ``start_seed``. Without
    ``start`` it starts from random weights. With ``start_depth``, the start is a network of another depth, which
    another command trains. With ``kept_blocks``, the run starts from the static subnetwork of the start: that number of
    its most executed blocks (`models.experiments.subnetwork`). A row with ``soup`` is not trained: its weights are the
    mean of those of the start and of the rows in ``soup``. ``teacher`` is one of `TEACHER_NETWORKS`, or a row whose run
    with seed 0 is the teacher. By default the start is the teacher.

    ``at_most`` is a computation percentage (0..100). The execute threshold is then the one with the best accuracy on
    the validation images among those that compute no more.
    """

    name: str
    title: str
    group: Group
    routing: Literal["resnet", "rnn_gate", "feedforward"]
    stage: Stage
    recipe: str
    start: str | None = None
    start_seed: int | None = None
    start_depth: int | None = None
    soup: tuple[str, ...] = ()
    kept_blocks: int | None = None
    teacher: str | None = None
    seeds: tuple[int, ...] = (0,)
    changes: Annotated[Mapping[str, Any], BeforeValidator(typed_values)] = field(default_factory=dict)
    at_most: float | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The rows whose checkpoints are needed: the start, and the other rows of the soup."""
        return () if self.start is None else (self.start, *self.soup)

    def seed_of_start(self, seed: int) -> int:
        """Return the seed of the run from which the run with ``seed`` starts."""
        return seed if self.start_seed is None else self.start_seed
