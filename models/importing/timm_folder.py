"""Read the config.json that timm writes beside a network's weights: which network, preprocessing and labels."""

import math
import re
from collections.abc import Mapping
from typing import Any

from models.errors import UserError
from models.importing.backbone import nearest, refusal
from models.preprocessing import FILTERS, InputSpec

PLAIN = re.compile(r"(tv_|gluon_|ssl_|swsl_|ig_)?resnet(18|34|50|101|152)(_v1b)?")
"""timm's names of plain ResNets: the newest name, and older names with the origin of the weights."""
REASONS = {
    "resnetv2": "is a pre-activation ResNet (ResNetV2)",
    "resnet(aa|blur)|ecaresnet(aa|blur)|seresnetaa": "has anti-aliased downsampling",
    "seresnet|legacy_se|skresnet|ecaresnet|gcresnet|cbamresnet|resnetrs": "has an attention module in its blocks",
    "resnext|seresnext": "has grouped convolutions (ResNeXt)",
    "wide_resnet": "has wider blocks (Wide ResNet)",
    r"(gluon_)?resnet\d+(_v1)?[cdst]\w*": "has a deep stem of three convolutions (ResNet-C, -D, -S, -T)",
    r"resnet\d+_(gn|clip)\w*": "has other layers than a plain ResNet",
    r"(gluon_)?resnet\d+": "has a depth that no plain ResNet here has",
}
"""The reason why a network of timm cannot be imported, by the beginning of its name."""
HARMLESS: dict[str, tuple[Any, ...]] = {"in_chans": (3,), "global_pool": ("avg",), "output_stride": (32,)}
"""The values of timm's ``model_args`` that do not change a plain ResNet."""
UNSEEN = ("num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "img_size", "pretrained")
"""Keys of ``model_args`` that have no effect on the network's output."""
CROP = 0.875
"""timm's default share of the resized shorter side that the crop keeps."""


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Raise UserError if config.json describes another network than a ResNet that can be imported."""
    name = str(config["architecture"]).partition(".")[0]
    if not PLAIN.fullmatch(name):
        reason = next(
            (reason for names, reason in REASONS.items() if re.match(names, name)), "is a network of another family"
        )
        raise refusal(source, f"{reason} ({name})", nearest())
    for key, value in (config.get("model_args") or {}).items():
        if key not in UNSEEN and value not in HARMLESS.get(key, ()):
            raise refusal(source, f"is a {name} with {key} = {value!r} in model_args", f"{name} without it")
    pooling = config.get("global_pool", "avg")
    if pooling != "avg":
        raise refusal(source, f"has the pooling {pooling!r} before its classifier", f"{name} with 'avg'")


def input_spec(config: Mapping[str, Any]) -> InputSpec:
    """Return the preprocessing in config.json: timm's evaluation transform at the training size.

    Raises UserError for unknown preprocessing.
    """
    stored = config.get("pretrained_cfg") or config
    _, height, width = stored.get("input_size", (3, 224, 224))
    crop_mode, interpolation = stored.get("crop_mode") or "center", stored.get("interpolation", "bicubic")
    share = stored.get("crop_pct") or CROP
    if height != width or crop_mode not in ("center", "squash") or interpolation not in FILTERS or share > 1:
        raise UserError(
            f"timm's preprocessing of {height} x {width} pixels with crop_mode {crop_mode!r}, crop_pct {share:g} and "
            f"interpolation {interpolation!r} is not known here; choose squares, center or squash, at most 1, and "
            f"{', '.join(FILTERS)} in config.json"
        )
    return InputSpec(
        height=height,
        width=width,
        resize=math.floor(height / share),
        interpolation=interpolation,
        resize_rule="stretch" if crop_mode == "squash" else "torchvision",
        mean=stored["mean"],
        std=stored["std"],
    )


def label_names(config: Mapping[str, Any]) -> Any:
    """Return the labels in config.json, which are a list or a mapping by number, or None if it has no labels."""
    stored = config.get("pretrained_cfg") or {}
    return next((each[key] for each in (config, stored) for key in ("label_names", "labels") if each.get(key)), None)
