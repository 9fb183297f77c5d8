"""Pretrained ResNets are recognised, and their logits equal the source library's, preprocessing included."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from models.checkpoint import read_checkpoint
from models.engines import load_engine
from models.importing.source import import_source, load_source
from models.preprocessing import prepare

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
    network = ResNetForImageClassification(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.6)
    return network


@pytest.fixture(scope="module", params=LAYERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers wrote."""
    folder = tmp_path_factory.mktemp("transformers") / f"resnet-{request.param}"
    random_network(request.param).save_pretrained(folder)
    processor = ConvNextImageProcessorPil(
        size={"shortest_edge": 64}, crop_pct=0.9, resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
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


def source_logits(folder: Path, images: list[Image.Image]) -> Tensor:
    """Return what transformers answers for photos, with its own preprocessing."""
    processor = ConvNextImageProcessorPil.from_pretrained(folder)
    inputs = processor(images, return_tensors="pt")
    network = ResNetForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits: Tensor = network(**inputs).logits
    return logits


def imported_logits(source: Path, output: Path, images: list[Image.Image], engine: str = "torch") -> np.ndarray:
    import_source(str(source), output)
    checkpoint = read_checkpoint(output)
    inputs = np.stack([prepare(image, checkpoint.config.input) for image in images])
    return load_engine(checkpoint, engine, "cpu").run(inputs, np.full(len(images), 0.5, np.float32)).logits


PHOTOS = [photo(), photo(97, 200), photo(400, 133), photo(64, 64)]


def test_folder_of_transformers_gives_its_logits_and_labels(folder: Path, tmp_path: Path) -> None:
    expected = source_logits(folder, PHOTOS)
    assert expected.std() > 0.01
    np.testing.assert_allclose(imported_logits(folder, tmp_path, PHOTOS), expected, atol=1e-4, rtol=0)
    config = read_checkpoint(tmp_path).config
    assert config.labels == LABELS
    assert config.training.imported_from == folder.name


def test_pickled_weights_of_transformers_are_read_without_objects(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (old / file).write_bytes((folder / file).read_bytes())
    state = load_file(folder / "model.safetensors")
    torch.save(state, old / "pytorch_model.bin")
    network = load_source(str(old)).network
    assert torch.equal(network.head.weight, state["classifier.1.weight"])


TIMM = {
    "architecture": "resnet18",
    "num_classes": 4,
    "num_features": 512,
    "label_names": LABELS,
    "pretrained_cfg": {
        "tag": "a1_in1k", "custom_load": False, "input_size": [3, 64, 64], "test_input_size": [3, 96, 96],
        "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.9, "test_crop_pct": 1.0,
        "crop_mode": "center", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "num_classes": 4,
        "pool_size": [2, 2], "first_conv": "conv1", "classifier": "fc",
    },
}  # fmt: skip
"""The content of config.json as timm writes it beside the weights."""


def write_timm(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TIMM | changes))
    return folder


def test_folder_of_timm_gives_the_logits_of_the_same_network(folder: Path, tmp_path: Path) -> None:
    depth = int(folder.name.removeprefix("resnet-"))
    state = torchvision_names(load_file(folder / "model.safetensors"))
    write_timm(tmp_path / "timm", state, architecture=f"resnet{depth}")
    # The excess of the resized photos over the crop is such that both libraries round their crops alike.
    photos = [photo(200, 200), photo(142, 71), photo(71, 71)]
    expected = source_logits(folder, photos)
    for number, source in enumerate((tmp_path / "timm", tmp_path / "timm" / "model.safetensors")):
        output = tmp_path / str(number)
        np.testing.assert_allclose(imported_logits(source, output, photos), expected, atol=1e-4, rtol=0)
        assert read_checkpoint(output).config.labels == LABELS


def test_state_dict_of_torchvision_gives_the_logits_of_the_same_network(folder: Path, tmp_path: Path) -> None:
    torch.save(torchvision_names(load_file(folder / "model.safetensors")), tmp_path / "mine.pth")
    config = import_source(str(tmp_path / "mine.pth"), tmp_path / "out", labels=LABELS)
    assert (config.input.resize, config.input.height, config.input.interpolation) == (256, 224, "bilinear")
    assert config.labels == LABELS
    network = ResNetForImageClassification.from_pretrained(folder)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(images).logits
        logits, _ = read_checkpoint(tmp_path / "out").network(images)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
