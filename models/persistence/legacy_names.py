"""Translate the names that earlier versions wrote to current names.

Files and command lines with an old name are read as if they had the new one. Only new names are written.
"""

from collections.abc import Mapping
from typing import Any

KEYS = {
    "open_bias": "gate_bias_init",
    "rungs": "operating_points",
    "targets_fall": "target_annealing",
    "target_weight": "target_rate_weight",
    "distil": "distillation_weight",
    "overlaid": "mixup",
    "spread": "per_sample_spread",
    "gates_alone": "freeze_backbone",
    "sharpen": "gate_logit_scale",
    "held_out_images": "validation_images",
    "held_out": "validation",
}
"""Keys of recipes, and of the training and evaluation in checkpoints and results files."""
POINT_KEYS = {"target": "target_rate"}
"""Keys of an operating point. The ``target`` of an early stage record is another value."""
RECIPES = {"taught": "distilled", "dial": "multi_budget", "average": "soup"}
STAGES = {"average": "soup"}
TEACHERS = {
    "wide": "small",
    "wider": "large",
    "answers": "small-logits",
    "wide-answers": "small-logits",
    "wider-answers": "large-logits",
}
ROWS = {
    "taught": "distilled",
    "taught-hrl": "distilled-hrl",
    "longer": "distilled-longer",
    "longer-hrl": "distilled-longer-hrl",
    "plain-taught": "plain-distilled",
    "one-rung": "one-operating-point",
    "deeper-gates": "grown-gates",
    "deeper": "grown-gates-sp",
    "deeper-mean": "grown-gates-soup",
    "patient": "distilled-long",
    "patient-sp": "distilled-long-sp",
    "patient-hrl": "distilled-long-hrl",
    "patient-hrl-half": "distilled-long-hrl-half",
    "patient-hrl-long": "distilled-long-hrl-long",
    "patient-hrl-slow": "distilled-long-hrl-low-rate",
    "patient-hrl-slow-long": "distilled-long-hrl-low-rate-long",
    "patient-hrl-slow-live": "distilled-long-hrl-low-rate-online",
    "patient-hrl-mean": "distilled-long-hrl-soup",
} | {
    f"accurate-{budget}{old}": f"budget-{budget}{new}"
    for budget in (70, 60)
    for old, new in {
        "": "",
        "-hrl": "-hrl",
        "-hrl-more": "-hrl-more",
        "-hrl-rewarded": "-hrl-high-alpha",
        "-hrl-rewarded-more": "-hrl-high-alpha-more",
        "-hrl-half": "-hrl-half",
        "-hrl-long": "-hrl-long",
        "-hrl-long-half": "-hrl-long-half",
        "-hrl-long-half-more": "-hrl-long-half-more",
        "-hrl-long-half-again": "-hrl-long-half-again",
        "-hrl-mean": "-hrl-soup",
        "-hrl-half-long": "-hrl-half-long",
    }.items()
}
"""Rows of `skipnet reproduce`, and one of their groups."""
SPLITS = {"held_out": "validation"}
VALUES = {"name": RECIPES, "stage": STAGES, "teacher": TEACHERS, "network": TEACHERS, "row": ROWS, "split": SPLITS}
"""The values that have new names, by key."""


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping under the current names, including nested stages and operating points.

    A key may follow a stage's name and a space, as in a run's saved state: "sp open_bias".
    """
    renamed = {}
    for key, value in values.items():
        stage, space, name = key.rpartition(" ")
        name = KEYS.get(name, name)
        renamed[f"{stage}{space}{name}"] = current_value(name, value)
    return renamed


def current_value(name: str, value: Any) -> Any:
    """Return a value of the current key ``name`` under the current names."""
    if isinstance(value, str):
        return VALUES.get(name, {}).get(value, value)
    if isinstance(value, Mapping):
        return current_names(value)
    if isinstance(value, list | tuple):
        if name == "operating_points":
            return type(value)(rename_point(point) for point in value)
        return type(value)(current_value(name, part) if not isinstance(part, str) else part for part in value)
    return value


def rename_point(point: Any) -> Any:
    """Return an operating point under the current names."""
    return {POINT_KEYS.get(key, key): value for key, value in point.items()} if isinstance(point, Mapping) else point
