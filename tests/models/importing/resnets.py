"""Small ResNets: folders that transformers writes, and the same weights as timm and torchvision name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

LABELS = ["tabby cat", "Hündin", "car wheel", "0"]
LAYERS: dict[int, dict[str, Any]] = {
    18: {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    50: {},
}


def photo(width: int = 301, height: int = 226) -> Image.Image:
    random = np.random.default_rng(width)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def random_network(depth: int) -> Any:
    """Return a network of transformers whose batch norms and outputs look like a trained one's."""
    torch.manual_seed(depth)
    config = ResNetConfig(**LAYERS[depth], id2label=dict(enumerate(LABELS)), label2id={})
    network: Any = ResNetForImageClassification(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1)
    nn.init.normal_(network.classifier[1].weight, std=0.3)
    return network


def write_transformers(folder: Path, depth: int) -> Path:
    """Write a network and its image processor with transformers; return the folder."""
    random_network(depth).save_pretrained(folder)
    processor = ConvNextImageProcessorPil(
        size={"shortest_edge": 64}, crop_pct=0.92, resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
    )
    processor.save_pretrained(folder)
    return folder


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of transformers under the names of torchvision and timm."""
    renamed = {}
    for key, value in state.items():
        name = key.replace("resnet.embedder.embedder.convolution", "conv1")
        name = name.replace("resnet.embedder.embedder.normalization", "bn1").replace("classifier.1", "fc")
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        for index in range(3):
            name = name.replace(f"layer.{index}.convolution", f"conv{index + 1}")
            name = name.replace(f"layer.{index}.normalization", f"bn{index + 1}")
        for stage in range(4):
            name = name.replace(f"resnet.encoder.stages.{stage}.layers", f"layer{stage + 1}")
        renamed[name] = value
    return renamed


def source_logits(folder: Path, images: list[Image.Image], processor: Any = None) -> Tensor:
    """Return the logits of transformers for photos, by default with the folder's own preprocessing."""
    processor = processor or ConvNextImageProcessorPil.from_pretrained(folder)
    inputs = processor(images, return_tensors="pt")
    network = ResNetForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits: Tensor = network(**inputs).logits
    return logits


PRETRAINED = {
    "tag": "a1_in1k", "custom_load": False, "input_size": [3, 64, 64], "test_input_size": [3, 96, 96],
    "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.92, "test_crop_pct": 1.0,
    "crop_mode": "center", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "num_classes": 4,
    "pool_size": [2, 2], "first_conv": "conv1", "classifier": "fc",
}  # fmt: skip
TIMM = {
    "architecture": "resnet18",
    "num_classes": 4,
    "num_features": 512,
    "label_names": LABELS,
    "pretrained_cfg": PRETRAINED,
}
"""The content of config.json as timm writes it beside the weights."""


def write_timm(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TIMM | changes))
    return folder
