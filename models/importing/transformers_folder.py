"""Read ``ResNetForImageClassification`` of transformers: its config.json, preprocessor_config.json and weight names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from models.architectures import IMAGENET_BLOCKS
from models.errors import UserError
from models.importing.backbone import nearest, refusal
from models.preprocessing import FILTERS, InputSpec, ResizeRule

PREPROCESSOR = "preprocessor_config.json"
LAYER = re.compile(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:(shortcut)|layer\.(\d+))\.(\w+)\.(\w+)")
STEM = "resnet.embedder.embedder."
EXPECTED = {
    "num_channels": (3, "reads images of another number of channels than 3"),
    "embedding_size": (64, "has a stem of another width than 64"),
    "hidden_act": ("relu", "has another activation than ReLU"),
    "downsample_in_first_stage": (False, "has a stride in its first stage"),
    "downsample_in_bottleneck": (False, "has the stride on the 1x1 convolution of its blocks"),
}
"""The values of config.json that every ResNet here has (the defaults), and the meaning of another value."""
STRETCHED_FROM = 384
"""From this size on, ConvNeXT's preprocessing stretches images and does not crop them."""
CONVNEXT_CROP = 224 / 256
"""The default share of the shorter side that ConvNeXT's preprocessing keeps."""


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Raise UserError if config.json describes another network than a ResNet that can be imported."""
    kind = config.get("model_type")
    if kind != "resnet":
        raise refusal(source, f"is a network of another family ({kind})", nearest())
    block, counts = config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))
    for key, (expected, reason) in EXPECTED.items():
        if config.get(key, expected) != expected:
            raise refusal(source, f"{reason} ({key} is {config[key]!r} in config.json)", nearest(block, counts))
    if (block, counts) not in IMAGENET_BLOCKS.values():
        raise refusal(source, f"has {', '.join(map(str, counts))} {block} blocks", nearest(block, counts))


def rename_to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under torchvision's names. Unknown names are not changed."""
    return {rename(key): value for key, value in state.items()}


def rename(key: str) -> str:
    if key.startswith(STEM):
        part, _, rest = key.removeprefix(STEM).partition(".")
        return f"{'conv' if part == 'convolution' else 'bn'}1.{rest}"
    if key.startswith("classifier.1."):
        return key.replace("classifier.1.", "fc.")
    found = LAYER.fullmatch(key)
    if found is None:
        return key
    stage, layer, shortcut, number, part, rest = found.groups()
    index, prefix = (0, "conv") if part == "convolution" else (1, "bn")
    name = f"downsample.{index}" if shortcut else f"{prefix}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{layer}.{name}.{rest}"


def input_spec(processor: Mapping[str, Any], file: Path) -> InputSpec:
    """Return the preprocessing in ``file``, a preprocessor_config.json with this content.

    Raises UserError for an image processor of another kind.
    """
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    try:
        crop, resize, rule = sizes(kind, processor)
        interpolation = filter_name(processor["resample"])
        mean, std = statistics(processor)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} describes preprocessing that is not known here ({kind}: {error}); save the network's own image "
            "processor with transformers: ConvNextImageProcessor(...).save_pretrained(FOLDER)"
        ) from error
    return InputSpec(
        height=crop, width=crop, resize=resize, interpolation=interpolation, resize_rule=rule, mean=mean, std=std
    )


def sizes(kind: str, processor: Mapping[str, Any]) -> tuple[int, int, ResizeRule]:
    """Return the side of the crop, the side to which images are resized, and the rule of resizing."""
    if not processor.get("do_resize", True):
        raise ValueError("do_resize is false")
    size = processor["size"]
    if kind.startswith("ConvNext"):
        side = size if isinstance(size, int) else size["shortest_edge"]
        if side >= STRETCHED_FROM:
            return side, side, "stretch"
        return side, int(side / (processor.get("crop_pct") or CONVNEXT_CROP)), "transformers"
    if kind.startswith(("CLIP", "Bit")) and processor.get("do_center_crop", True):
        shorter = size if isinstance(size, int) else size["shortest_edge"]
        crop = square(processor["crop_size"])
        if crop > shorter:
            raise ValueError("crop_size is larger than size")
        return crop, shorter, "transformers"
    if kind.startswith("ViT"):
        return square(size), square(size), "stretch"
    raise ValueError("another kind of image processor")


def square(size: int | Mapping[str, int]) -> int:
    """Return the side of a square, which transformers gives as a number or as height and width."""
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise ValueError("height and width differ")
    return size["height"]


def filter_name(resample: int) -> Any:
    """Return the name of one of Pillow's filters by its number."""
    found = Image.Resampling(resample)
    return next(name for name, each in FILTERS.items() if each == found)


def statistics(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for RGB values in 0..1, given the file's scaling factor."""
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
    normalises = processor.get("do_normalize", True)
    mean, std = (processor["image_mean"], processor["image_std"]) if normalises else ((0.0,) * 3, (1.0,) * 3)
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)
