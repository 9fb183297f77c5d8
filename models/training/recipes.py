"""Recipes: named sets of hyper-parameters, one for each stage of training."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Stage = Literal["plain", "sp", "hrl"]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class UnknownRecipe(ValueError):
    """There is no recipe of that name for that stage."""


class WrongChange(ValueError):
    """What is to be changed is no value of a recipe, or not of its type or range."""


@dataclass(frozen=True)
class Rung:
    """A rung of the compute dial: ``share`` of every batch is routed at execute threshold ``threshold``, and may
    execute the share ``target`` of the blocks for free.
    """

    share: Share
    threshold: Share
    target: Share


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained, by SGD with momentum 0.9.

    ``iterations`` counts steps; where None, ``epochs`` counts. ``schedule``: "steps" divides ``rate`` by 10 at half
    and at three quarters of the run, "one_cycle" rises linearly to ``rate`` in the first 15 % and falls to zero along
    a cosine, "constant" stays. ``warm_up`` steps of a tenth of the rate come first.

    SP: gates start at ``open_bias`` as their logit. Above the target of its rung, the computation of a rung's images
    costs ``target_weight`` times the squared excess; the targets fall from 1, linearly, between the shares of the
    steps that ``targets_fall`` names. Without ``rungs``, all images are routed at 0.5 and computation is free. With
    ``spread`` each image has a target of its own, up to half of it above its rung's if the teacher finds it harder than
    others, as much below if easier; and executing too few blocks costs as executing too many does.
    ``distil`` weighs a dense teacher's answer, softened by ``temperature``, against the label (Hinton et al. 2015).
    With ``gates_alone`` the gates learn, and all else stays as it is, batch norm's statistics too.
    ``overlaid`` is the share of the images that another is laid over, which a teacher that answers then can judge.
    HRL: ``alpha`` is the reward of skipping all blocks (paper, equation 4), ``policy_weight`` weighs the policy
    gradient against the cross-entropy's, ``samples`` routes are drawn an image, and the gates' logits are multiplied
    by ``sharpen`` before it begins.

    ``statistics`` of batch norm in HRL: "frozen" as SP left them, of the "executed" images of each batch, or frozen
    and "re-estimated" when the stage is over.

    For the paper's ablations: ``gates`` may be "soft" in SP, that is the probability itself scales the block and only
    inference is hard (its Table 3); ``pure`` leaves HRL no gradient but the policy's, the predicted class being one
    action more.
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
    open_bias: float = 0.0
    rungs: tuple[Rung, ...] = ()
    targets_fall: tuple[Share, Share] = (0.2, 0.6)
    target_weight: NotNegative = 20.0
    distil: Share = 0.0
    temperature: Positive = 4.0
    overlaid: Share | None = None
    spread: Share | None = None
    gates_alone: bool | None = None
    alpha: NotNegative = 0.1
    policy_weight: NotNegative = 0.01
    samples: Annotated[int, Field(ge=1)] = 1
    sharpen: Positive = 1.0
    statistics: Literal["frozen", "executed", "re-estimated"] = "frozen"
    gates: Literal["hard", "soft"] = "hard"
    pure: bool = False

    @property
    def routes(self) -> int:
        """How many routes of an image a step computes."""
        return self.samples if self.stage == "hrl" else 1

    def steps(self, steps_per_epoch: int) -> int:
        """Return how many steps the stage takes."""
        return self.iterations or self.epochs * steps_per_epoch


def paper(stage: Stage) -> Recipe:
    """SkipNet, section 4 and the public code: 64k iterations for plain and SP, 10k for HRL."""
    if stage == "hrl":
        return Recipe("paper", stage, rate=1e-4, schedule="constant", iterations=10_000)
    return Recipe("paper", stage, rate=0.1, schedule="steps", iterations=64_000, warm_up=400)


def short(stage: Stage) -> Recipe:
    """The paper's method on a one-cycle schedule that two CPU cores run in hours."""
    if stage == "hrl":
        return Recipe(
            "short", stage, rate=0.003, schedule="one_cycle", epochs=2, nesterov=True, decay_all=False,
            weight_decay=5e-4, alpha=0.1, policy_weight=0.1, samples=2, batch=64, sharpen=10.0,
            statistics="re-estimated",
        )  # fmt: skip
    return Recipe(
        "short", stage, rate=0.15, schedule="one_cycle", epochs=30, nesterov=True, decay_all=False,
        weight_decay=5e-4, open_bias=2.0,
    )  # fmt: skip


def budget(stage: Stage) -> Recipe:
    """``short`` with a computation target in SP: the gates learn to skip before HRL refines them."""
    return replace(short(stage), name="budget", rungs=(Rung(1, 0.5, 0.6),) if stage == "sp" else ())


def dial(stage: Stage) -> Recipe:
    """SP from a trained dense network, which also teaches: one network for many budgets.

    A part of every batch runs dense and others at low and high thresholds, so that the gates learn an order of
    what is worth executing, and the network answers well along each rung's routes.
    """
    if stage != "sp":
        return replace(short(stage), name="dial", sharpen=1.0, statistics="frozen")
    return replace(
        short(stage), name="dial", rate=0.05, epochs=10, targets_fall=(0.05, 0.5), distil=0.7,
        rungs=(Rung(1 / 8, 0.0, 1.0), Rung(1 / 8, 0.2, 0.75), Rung(1 / 2, 0.5, 0.5), Rung(1 / 4, 0.8, 0.35)),
    )  # fmt: skip


def adaptive(stage: Stage) -> Recipe:
    """A second SP, from a network that ``dial`` trained: cost that follows the image.

    A target for the whole batch is met most easily by gates that decide alike for every image, and ``dial``'s do. Here
    what the dense teacher finds hard is to execute more than what it finds easy. HRL is ``dial``'s.
    """
    if stage != "sp":
        return dial(stage)
    return replace(
        dial(stage), name="adaptive", rate=0.03, epochs=2, open_bias=0.0, targets_fall=(0.0, 0.05), spread=0.7,
        rungs=(Rung(1 / 8, 0.0, 1.0), Rung(1 / 8, 0.2, 0.75), Rung(1 / 2, 0.5, 0.55), Rung(1 / 4, 0.8, 0.4)),
    )  # fmt: skip


def taught(stage: Stage) -> Recipe:
    """``adaptive``'s targets at once and for longer, with a better teacher (`models.training.distillation`)."""
    told = replace(adaptive(stage), name="taught", distil=0.9, temperature=2.0)
    if stage != "sp":
        return told
    return replace(told, rate=0.1, epochs=20, open_bias=2.0, targets_fall=(0.05, 0.5))


RECIPES = {"paper": paper, "short": short, "budget": budget, "dial": dial, "adaptive": adaptive, "taught": taught}


def find_recipe(name: str, stage: Stage) -> Recipe:
    """Return recipe ``name`` for a stage; raises UnknownRecipe, listing the names, where there is none."""
    if name not in RECIPES:
        raise UnknownRecipe(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name](stage)


SAID_OTHERWISE = ("name", "stage", "iterations", "epochs", "batch")
"""What `skipnet train` takes from options of its own."""


def read_changes(text: str) -> dict[str, Any]:
    """Return the values of a JSON object that replace a recipe's own, in the recipe's types; raises WrongChange."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        example = '{"open_bias": 0.0}'
        raise WrongChange(f"a recipe's changes are a JSON object such as {example}, not {text}")
    types = {
        name: kind for name, kind in get_type_hints(Recipe, include_extras=True).items() if name not in SAID_OTHERWISE
    }
    changes = {}
    for name, value in values.items():
        if name not in types:
            raise WrongChange(f"no value {name!r} of a recipe can be changed; there are {', '.join(types)}")
        try:
            changes[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise WrongChange(f"{name} of a recipe: {error.errors()[0]['msg']}, not {value!r}") from error
    return changes


def find_changes(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stage, as a checkpoint's config sums it up, changed of its recipe, as it stands in JSON.

    A summary leaves out what is None, and an older one what recipes did not have yet: that is no change. Of a recipe
    that there is no more, nothing is known.
    """
    if summary["name"] not in RECIPES:
        return {}
    recipe: dict[str, Any] = json.loads(json.dumps(asdict(find_recipe(summary["name"], summary["stage"]))))
    changes = {}
    for field in fields(Recipe):
        value = summary.get(field.name)
        known = field.name in summary or field.default is None
        if known and field.name not in SAID_OTHERWISE and value != recipe[field.name]:
            changes[field.name] = value
    return changes
