"""Recipes: named sets of hyper-parameters, one for each stage of training."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from models.errors import UserError
from models.persistence import legacy_names
from models.persistence.legacy_names import current_names
from models.persistence.training_record import TrainedStage

Stage = Literal["plain", "sp", "hrl"]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FINETUNE = "finetune"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class OperatingPoint:
    """A point of the accuracy-compute curve that SP trains.

    The given ``share`` of each batch is routed at execute threshold ``threshold``. Its images may execute the share
    ``target_rate`` of the blocks at no cost.
    """

    share: Share
    threshold: Share
    target_rate: Share


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one stage, which SGD with momentum 0.9 trains.

    Length: ``iterations`` steps, or ``epochs`` epochs if that is None. Learning rate ``rate``: "steps" divides it by 10
    at half and at three quarters of the run. "one_cycle" raises it linearly in the first 15 % and lowers it to zero
    along a cosine. "constant" keeps it. The first ``warm_up`` steps take a tenth of the rate.

    SP (supervised pre-training):

    - ``gate_bias_init``: the gates' logit at the start.
    - ``operating_points``: which images are routed at which threshold. If there are none, every image is routed at 0.5
      and computation costs nothing.
    - ``target_rate_weight``: weight of the squared excess of an operating point's computation over its target rate.
    - ``target_annealing``: the shares of the steps between which the target rates fall linearly from 1 to their values.
    - ``per_sample_spread``: gives every image its own target rate, at most half the spread above or below that of its
      operating point, by the rank of the teacher's loss on it. Too much and too little computation cost the same.
    - ``freeze_backbone``: train only the gates. The other weights and batch norm's statistics do not change.

    Distillation (Hinton et al. 2015): ``distillation_weight`` is the weight of the teacher's loss, and the label's loss
    has the rest. ``temperature`` softens both distributions. ``mixup`` is the share of the images that are mixed with
    another image. It needs an online teacher.

    HRL (hybrid reinforcement learning): ``alpha`` is the reward for skipping all blocks (paper, equation 4),
    ``policy_weight`` is the weight of the policy gradient relative to the cross-entropy. ``samples`` is the number of
    routes sampled for an image. ``gate_logit_scale`` multiplies the gates' logits before the stage. Batch norm's
    ``statistics`` are "frozen" (those of SP), "executed" (those of the images of each batch that execute the block), or
    "re-estimated" after the stage.

    The paper's ablations: With ``gates`` "soft", SP scales a block by its gate's probability, and only inference has
    hard gates (Table 3). ``pure`` trains HRL by the policy gradient alone, with the predicted class as one more action.
    """

    name: str
    stage: Stage
    rate: Positive
    schedule: Literal["steps", "one_cycle", "constant"]
    iterations: int | None = None
    epochs: int = 0
    batch: int = 128
    weight_decay: NotNegative = 1e-4
    decay_all: bool = True
    nesterov: bool = False
    warm_up: Annotated[int, Field(ge=0)] = 0
    gate_bias_init: float = 0.0
    operating_points: tuple[OperatingPoint, ...] = ()
    target_annealing: tuple[Share, Share] = (0.2, 0.6)
    target_rate_weight: NotNegative = 20.0
    distillation_weight: Share = 0.0
    temperature: Positive = 4.0
    mixup: Share | None = None
    per_sample_spread: Share | None = None
    freeze_backbone: bool | None = None
    alpha: NotNegative = 0.1
    policy_weight: NotNegative = 0.01
    samples: Annotated[int, Field(ge=1)] = 1
    gate_logit_scale: Positive = 1.0
    statistics: Literal["frozen", "executed", "re-estimated"] = "frozen"
    gates: Literal["hard", "soft"] = "hard"
    pure: bool = False

    @property
    def routes(self) -> int:
        """Number of routes that a step computes for an image."""
        return self.samples if self.stage == "hrl" else 1

    def steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the stage."""
        return self.iterations or self.epochs * steps_per_epoch


def paper(stage: Stage) -> Recipe:
    """SkipNet, section 4 and the public code: 64k iterations for plain and SP, 10k for HRL."""
    if stage == "hrl":
        return Recipe("paper", stage, rate=1e-4, schedule="constant", iterations=10_000)
    return Recipe("paper", stage, rate=0.1, schedule="steps", iterations=64_000, warm_up=400)


def short(stage: Stage) -> Recipe:
    """The paper's method on a one-cycle schedule that takes two CPU cores some hours."""
    if stage == "hrl":
        return Recipe(
            "short", stage, rate=0.003, schedule="one_cycle", epochs=2, nesterov=True, decay_all=False,
            weight_decay=5e-4, alpha=0.1, policy_weight=0.1, samples=2, batch=64, gate_logit_scale=10.0,
            statistics="re-estimated",
        )  # fmt: skip
    return Recipe(
        "short", stage, rate=0.15, schedule="one_cycle", epochs=30, nesterov=True, decay_all=False,
        weight_decay=5e-4, gate_bias_init=2.0,
    )  # fmt: skip


def budget(stage: Stage) -> Recipe:
    """``short`` with a target rate in SP: the gates learn to skip before HRL refines them."""
    return replace(short(stage), name="budget", operating_points=points((1, 0.5, 0.6)) if stage == "sp" else ())


def multi_budget(stage: Stage) -> Recipe:
    """SP from a trained dense network, which is also the teacher. It gives one network for many compute budgets.

    Parts of each batch run with every block, at low thresholds and at high ones. So the gates learn to rank the blocks,
    and the network is accurate along the routes of each operating point.
    """
    if stage != "sp":
        return replace(short(stage), name="multi_budget", gate_logit_scale=1.0, statistics="frozen")
    return replace(
        short(stage), name="multi_budget", rate=0.05, epochs=10, target_annealing=(0.05, 0.5), distillation_weight=0.7,
        operating_points=points((1 / 8, 0.0, 1.0), (1 / 8, 0.2, 0.75), (1 / 2, 0.5, 0.5), (1 / 4, 0.8, 0.35)),
    )  # fmt: skip


def adaptive(stage: Stage) -> Recipe:
    """A second SP, from a network that ``multi_budget`` trained. Each image has its own target rate.

    Gates can meet the target rate of a batch with the same decisions for every image, as those of ``multi_budget`` do.
    With this recipe, an image with a higher loss of the dense teacher gets a higher target rate. HRL is that of
    ``multi_budget``.
    """
    if stage != "sp":
        return multi_budget(stage)
    return replace(
        multi_budget(stage), name="adaptive", rate=0.03, epochs=2, gate_bias_init=0.0, target_annealing=(0.0, 0.05),
        per_sample_spread=0.7,
        operating_points=points((1 / 8, 0.0, 1.0), (1 / 8, 0.2, 0.75), (1 / 2, 0.5, 0.55), (1 / 4, 0.8, 0.4)),
    )  # fmt: skip


def distilled(stage: Stage) -> Recipe:
    """One longer SP with the target rates of ``adaptive`` and a better teacher (`models.training.distillation`)."""
    recipe = replace(adaptive(stage), name="distilled", distillation_weight=0.9, temperature=2.0)
    if stage != "sp":
        return recipe
    return replace(recipe, rate=0.1, epochs=20, gate_bias_init=2.0, target_annealing=(0.05, 0.5))


def finetune(stage: Stage) -> Recipe:
    """Fine-tune a pretrained network on a small data set (`models.finetuning`).

    The dense network is trained first, and is then the teacher. Next only the gates are trained, and then all weights.
    """
    if stage == "plain":
        return replace(short(stage), name=FINETUNE, rate=0.01, epochs=20, batch=16, gate_bias_init=0.0)
    recipe = replace(multi_budget(stage), name=FINETUNE)
    if stage == "hrl":
        return recipe
    return replace(recipe, rate=0.01, epochs=30, batch=16, gate_bias_init=0.0, target_annealing=(0.0, 0.3))


GATES_ALONE = {"freeze_backbone": True, "rate": 0.05, "gate_bias_init": 2.0, "target_annealing": (0.05, 0.7)}
"""What ``finetune`` changes while only the gates are trained."""


def points(*values: tuple[float, float, float]) -> tuple[OperatingPoint, ...]:
    """Return operating points, each from its share, threshold and target rate."""
    return tuple(OperatingPoint(*each) for each in values)


RECIPES = {each.__name__: each for each in (paper, short, budget, multi_budget, adaptive, distilled, finetune)}


def find_recipe(name: str, stage: Stage) -> Recipe:
    """Return recipe ``name`` for a stage.

    Raises UserError, which lists the known names, for an unknown name.
    """
    make = RECIPES.get(legacy_names.RECIPES.get(name, name))
    if make is None:
        raise UserError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return make(stage)


FIXED = ("name", "stage", "iterations", "epochs", "batch")
"""Values that changes may not contain, because `skipnet train` has options for them."""


def read_changes(text: str) -> dict[str, Any]:
    """Return the values of a JSON object that replace a recipe's own, in the recipe's types.

    Raises UserError for an unknown value, or one of a wrong type or range.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        example = '{"gate_bias_init": 0.0}'
        raise UserError(f"a recipe's changes are a JSON object such as {example}, not {text}")
    return typed_values(current_names(values), FIXED)


def typed_values(values: Mapping[str, Any], fixed: Collection[str] = ("name", "stage")) -> dict[str, Any]:
    """Return values of a recipe in the recipe's types.

    Raises UserError for an unknown value, one of ``fixed``, or one of a wrong type or range.
    """
    types = {name: kind for name, kind in get_type_hints(Recipe, include_extras=True).items() if name not in fixed}
    typed = {}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"unknown recipe value {name!r}; expected one of {', '.join(types)}")
        try:
            typed[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"recipe value {name}: {error.errors()[0]['msg']}, not {value!r}") from error
    return typed


def find_changes(stage: TrainedStage) -> dict[str, Any]:
    """Return the values by which a stage of a checkpoint's record differs from its recipe, as JSON values.

    Values that the record lacks are not changes. It omits None, and older records omit values that recipes did not have
    then. Returns no changes if the recipe no longer exists.
    """
    if stage.name not in RECIPES:
        return {}
    values = stage.model_dump(mode="json")
    recipe: dict[str, Any] = json.loads(json.dumps(asdict(RECIPES[stage.name](cast(Stage, stage.stage)))))
    changes = {}
    for field in fields(Recipe):
        value = values.get(field.name)
        known = field.name in values or field.default is None
        if known and field.name not in FIXED and value != recipe[field.name]:
            changes[field.name] = value
    return changes
