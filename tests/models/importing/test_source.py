"""Pretrained ResNets are recognised, and their logits equal the source library's, preprocessing included."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ResNetForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from models.checkpoint import read_checkpoint
from models.engines import load_engine
from models.errors import UserError
from models.importing.source import import_source, load_source
from models.preprocessing import prepare
from service.cli.main import main
from tests.models.importing.resnets import (
    LABELS,
    LAYERS,
    PRETRAINED,
    photo,
    random_network,
    source_logits,
    torchvision_names,
    write_timm,
    write_transformers,
)


@pytest.fixture(scope="module", params=LAYERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers wrote."""
    return write_transformers(tmp_path_factory.mktemp("transformers") / f"resnet-{request.param}", request.param)


def imported_logits(source: Path, output: Path, images: list[Image.Image], engine: str = "torch") -> np.ndarray:
    import_source(str(source), output)
    checkpoint = read_checkpoint(output)
    inputs = np.stack([prepare(image, checkpoint.config.input) for image in images])
    return load_engine(checkpoint, engine, "cpu").run(inputs, np.full(len(images), 0.5, np.float32)).logits


PHOTOS = [photo(), photo(97, 200), photo(400, 133), photo(64, 64)]


def test_folder_of_transformers_gives_its_logits_and_labels(folder: Path, tmp_path: Path) -> None:
    expected = source_logits(folder, PHOTOS)
    assert expected.std(0).min() > 0.05
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


def test_folder_of_timm_gives_the_logits_of_the_same_network(folder: Path, tmp_path: Path) -> None:
    depth = int(folder.name.removeprefix("resnet-"))
    state = torchvision_names(load_file(folder / "model.safetensors"))
    write_timm(tmp_path / "timm", state, architecture=f"resnet{depth}")
    # Photos of this size are resized to 69 pixels. For their crop of 64, both libraries round 2.5 to 2.
    photos = [photo(200, 200), photo(138, 69), photo(30, 60)]
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


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """The weights of a ResNet-18 for four classes under torchvision's names."""
    return torchvision_names(dict(random_network(18).state_dict()))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


OTHER_WEIGHTS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "deep stem": ({"conv1.0.weight": zeros(32, 3, 3, 3)}, r"has a deep stem .* resnet18 \(torchvision, timm\)"),
    "anti-aliased": ({"layer2.0.downsample.1.filt": zeros(64, 1, 3, 3)}, "anti-aliased downsampling"),
    "SE": ({"layer1.0.se.fc1.weight": zeros(8, 64, 1, 1)}, "squeeze-and-excitation"),
    "ResNet-D": ({"layer2.0.downsample.1.weight": zeros(128, 64, 1, 1)}, r"average pooling .* \(ResNet-D\)"),
    "ResNeXt": (
        {"layer1.0.conv3.weight": zeros(256, 128, 1, 1), "layer1.0.conv2.weight": zeros(128, 4, 3, 3)},
        "grouped convolutions",
    ),
    "wide": (
        {"layer1.0.conv3.weight": zeros(256, 128, 1, 1), "layer1.0.conv1.weight": zeros(128, 64, 1, 1),
         "layer1.0.conv2.weight": zeros(128, 128, 3, 3)},
        r"wider blocks .* resnet50",
    ),
    "depth": ({"layer3.2.conv1.weight": zeros(256, 256, 3, 3)}, "2, 2, 3, 2 basic blocks"),
    "gray": ({"conv1.weight": zeros(64, 1, 7, 7)}, r"stem .* RGB images \(64x1x7x7\)"),
    "no classifier": ({"fc.weight": None, "fc.bias": None}, "has no classifier"),
    "NaN": ({"fc.bias": torch.full((4,), torch.nan)}, "fc.bias|head.bias holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), OTHER_WEIGHTS.values(), ids=OTHER_WEIGHTS)
def test_weights_of_other_networks_are_refused_by_name(
    plain: dict[str, Tensor], tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    state = {key: value for key, value in (plain | changes).items() if value is not None}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        import_source(str(tmp_path / "other.pth"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_network_without_batch_norm_is_refused(plain: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({key: value for key, value in plain.items() if "running" not in key}, tmp_path / "norm.pth")
    with pytest.raises(UserError, match="has no batch norm"):
        load_source(str(tmp_path / "norm.pth"))


def test_weights_of_a_skipnet_without_its_architecture_are_refused(tmp_path: Path) -> None:
    torch.save({"group1_layer0.conv1.weight": zeros(16, 16, 3, 3)}, tmp_path / "skipnet.pth.tar")
    with pytest.raises(UserError, match="name its architecture with --arch"):
        load_source(str(tmp_path / "skipnet.pth.tar"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_in_bottleneck": True}, "the stride on the 1x1 convolution .*microsoft/resnet-50"),
        ({"downsample_in_first_stage": True}, "a stride in its first stage"),
        ({"hidden_act": "gelu"}, "another activation than ReLU"),
        ({"embedding_size": 32}, "another width than 64"),
        ({"num_channels": 1}, "another number of channels"),
        ({"model_type": "convnext"}, r"another family \(convnext\).*resnet50"),
        ({"depths": [2, 2, 2, 2]}, "has 2, 2, 2, 2 bottleneck blocks"),
        ({"depths": 3}, "config.json cannot be read"),
    ],
)
def test_other_networks_of_transformers_are_refused_by_name(
    tmp_path: Path, plain: dict[str, Tensor], changes: dict[str, Any], message: str
) -> None:
    save_file(plain, tmp_path / "model.safetensors")
    config = {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_source(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50d"}, r"deep stem .*resnet50d"),
        ({"architecture": "resnetaa50"}, "anti-aliased"),
        ({"architecture": "resnetblur50"}, "anti-aliased"),
        ({"architecture": "seresnet50"}, "attention module"),
        ({"architecture": "ecaresnet50t"}, "attention module"),
        ({"architecture": "resnext50_32x4d"}, "grouped convolutions"),
        ({"architecture": "wide_resnet50_2"}, "Wide ResNet"),
        ({"architecture": "resnetv2_50"}, "pre-activation"),
        ({"architecture": "resnet26"}, "has a depth"),
        ({"architecture": "efficientnet_b0"}, "another family .*nearest that can is resnet50"),
        ({"model_args": {"output_stride": 16}}, "output_stride = 16"),
        ({"pretrained_cfg": PRETRAINED | {"crop_mode": "border"}}, "'border'"),
        ({"pretrained_cfg": PRETRAINED | {"mean": None}}, "config.json cannot be read"),
        ({"label_names": ["one"]}, "has 4 classes, but labels for 1"),
    ],
)
def test_other_networks_of_timm_are_refused_by_name(
    tmp_path: Path, plain: dict[str, Tensor], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_source(str(write_timm(tmp_path / "timm", plain, **changes)))


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "gluon_resnet18_v1b", "ssl_resnet18"])
def test_timms_names_of_the_plain_resnet_are_known(tmp_path: Path, plain: dict[str, Tensor], name: str) -> None:
    source = write_timm(tmp_path / "timm", plain, architecture=name, model_args={"num_classes": 4})
    assert load_source(str(source)).config.architecture == "imagenet_resnet_18"


@pytest.mark.parametrize("squash", [False, True])
def test_large_crops_stretch_the_image_as_the_source_does(
    tmp_path: Path, plain: dict[str, Tensor], squash: bool
) -> None:
    stored = PRETRAINED | {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
    save_file(plain, tmp_path / "model.safetensors")
    if squash:
        write_timm(tmp_path, plain, pretrained_cfg=stored)
    else:
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2]})
        )
    processor = ViTImageProcessorPil(size=64, resample=2, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3])
    processor.save_pretrained(tmp_path)
    expected = processor(photo(), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(prepare(photo(), load_source(str(tmp_path)).config.input), expected, atol=1e-5, rtol=0)


def test_unknown_image_processor_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "preprocessor_config.json").write_text('{"image_processor_type": "LevitImageProcessor", "size": 224}')
    with pytest.raises(UserError, match=r"preprocessing that is not known here \(LevitImageProcessor"):
        load_source(str(copy))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json is missing"):
        load_source(str(copy))


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def test_pickled_objects_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    for name, message in (
        ("pytorch_model.bin", "could run code, exec"),
        ("model.safetensors", "a damaged safetensors"),
    ):
        torch.save({"state_dict": Malicious()}, tmp_path / name)
        with pytest.raises(UserError, match=message):
            load_source(str(tmp_path))


def test_folder_with_several_weights_files_is_refused(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save(plain, tmp_path / name)
    with pytest.raises(UserError, match=r"several weights files, a.pth, b.pth: name the file itself"):
        load_source(str(tmp_path))


def test_checkpoint_folder_is_a_source(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    torch.save(plain, tmp_path / "a.pth")
    config = import_source(str(tmp_path / "a.pth"), tmp_path / "out", labels=LABELS)
    assert load_source(str(tmp_path / "out")).config == config


def test_command_reads_labels_from_a_file(
    tmp_path: Path, plain: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(plain, tmp_path / "a.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    command = ["import", str(tmp_path / "a.pth"), "--output", str(tmp_path / "out"), "--labels"]
    main([*command, str(tmp_path / "labels.txt")])
    assert read_checkpoint(tmp_path / "out").config.labels == LABELS
    output = capsys.readouterr().out
    assert "imagenet_resnet_18, 4 classes" in output
    assert "shorter side 256, crop 224x224, bilinear" in output
    (tmp_path / "labels.txt").write_text("one\ntwo")
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "labels.txt")])
    assert "has 4 classes, not 2" in capsys.readouterr().err
