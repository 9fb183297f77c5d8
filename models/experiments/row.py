"""A row of `skipnet reproduce`: one stage of training, as data, and what is published beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.training.recipes import Stage

Schedule = Literal["paper", "short"]
Group = Literal["table", "ablations", "recipe", "grown", "patient"]

PLAIN, RNN, FEED_FORWARD = "resnet", "rnn_gate", "feedforward"
TEACHER_NETWORKS = SMALL_LOGITS, LARGE, LARGE_LOGITS = "small-logits", "large", "large-logits"
"""Teachers that are no rows: a network of `models.training.distillation`, asked about each image as it is seen, or the
answers that it has given once.
"""


@dataclass(frozen=True)
class Published:
    """Top-1 accuracy and computation percentage, both in 0..100, and where they are published."""

    accuracy: float | None
    computation: float | None
    source: str


PUBLISHED = {
    ("cifar10_38", "plain"): Published(92.50, 100, "Table 2"),
    ("cifar10_38", "sp"): Published(None, 89, "Figure 4"),
    ("cifar10_38", "hrl-70"): Published(92.75, 70.27, "public checkpoint"),
    ("cifar10_38", "gates-hard"): Published(90.83, None, "Table 3"),
    ("cifar10_38", "gates-soft"): Published(66.67, None, "Table 3"),
    ("cifar10_38", "pure"): Published(10.0, None, "appendix"),
    ("cifar10_110", "plain"): Published(93.60, 100, "Table 2"),
    ("cifar10_110", "hrl-50"): Published(93.30, 49.5, "public checkpoint"),
    ("cifar100_38", "plain"): Published(68.54, 100, "Table 2"),
    ("cifar100_110", "plain"): Published(71.21, 100, "Table 2"),
}
"""What is published of a network, named by data set and depth, and a row."""


@dataclass(frozen=True)
class Row:
    """One stage of training, and the row whose checkpoint it starts from; None starts afresh. ``routing`` is the
    architecture's name without data set and depth.

    A run starts from that row's run of the same seed, or of ``start_seed``. Where that is of a network of another
    ``start_depth``, it is trained by a command of its own. With other ``averaged`` rows there is no training: it is the
    mean of their weights and its start's. ``teacher`` is a wide network or its answers, or the row whose run of seed 0
    teaches, where that is not the one to start from. ``changes`` replace values of ``recipe``.
    Where ``at_most`` is a computation percentage, the execute threshold is the one of the best accuracy on held-out
    images among those that compute no more.
    """

    name: str
    title: str
    group: Group
    routing: str
    stage: Stage
    recipe: str
    start: str | None = None
    start_seed: int | None = None
    start_depth: int | None = None
    averaged: tuple[str, ...] = ()
    teacher: str | None = None
    seeds: tuple[int, ...] = (0,)
    changes: Mapping[str, Any] = field(default_factory=dict)
    at_most: float | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The rows that it comes from: the one that it starts from, and those that it is averaged with."""
        return () if self.start is None else (self.start, *self.averaged)

    def seed_of_start(self, seed: int) -> int:
        """Return the seed of the run that the row's run of ``seed`` starts from."""
        return seed if self.start_seed is None else self.start_seed
