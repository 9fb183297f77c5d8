"""An imported ResNet has the logits of its source library, by /v2, for encoded photos."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from safetensors.torch import load_file
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from service.cli.main import main
from service.settings import Settings
from tests.models.importing.resnets import (
    LABELS,
    LAYERS,
    photo,
    source_logits,
    torchvision_names,
    write_timm,
    write_transformers,
)
from tests.service.parts import Running, encoded

# At these sizes torchvision, timm and transformers round the crops equally.
PHOTOS = [photo(138, 69), photo(200, 200)]


@pytest.fixture(scope="module", params=LAYERS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers(tmp_path_factory.mktemp("source") / "transformers", request.param)


@pytest.fixture(scope="module")
def served(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with the networks that three commands imported."""
    repository = tmp_path_factory.mktemp("repository")
    state = torchvision_names(load_file(source / "model.safetensors"))
    depth = sum("conv" in key or "fc.weight" in key for key in state)
    write_timm(source.parent / "timm", state, architecture=f"resnet{depth}")
    torch.save({"state_dict": state}, source.parent / "torchvision.pth")
    (source.parent / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    for name in ("transformers", "timm", "torchvision.pth"):
        labels = ["--labels", str(source.parent / "labels.txt")] if name.endswith(".pth") else []
        output = repository / name.partition(".")[0] / "1"
        main(["import", str(source.parent / name), "--output", str(output), *labels])
    server = Running(Settings(model_repository=repository, engine="onnxruntime", threads=1))
    yield server.wait_ready()
    server.stop()


@pytest.mark.parametrize("name", ["transformers", "timm", "torchvision"])
def test_served_logits_equal_the_sources(served: Running, source: Path, name: str) -> None:
    processor = ConvNextImageProcessorPil.from_pretrained(source)
    if name == "torchvision":
        processor = ConvNextImageProcessorPil(
            size={"shortest_edge": 224}, resample=2, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
        )
    tensor = triton.InferInput("bytes", [len(PHOTOS)], "BYTES")
    tensor.set_data_from_numpy(np.asarray([encoded(image) for image in PHOTOS], object))
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        logits = client.infer(name, [tensor], outputs=[triton.InferRequestedOutput("logits")]).as_numpy("logits")
    np.testing.assert_allclose(logits, source_logits(source, PHOTOS, processor), atol=1e-4, rtol=0)
    response = served.client.post("/classify", params={"model": name}, files={"image": encoded(PHOTOS[0])})
    assert response.json()["predictions"][0]["label"] == LABELS[logits[0].argmax()]
