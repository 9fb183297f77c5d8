"""Batches that are decoded and augmented on demand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.augmentation import normalise
from models.data.batches import PreparedImages, StreamedBatches
from models.data.datasets import find_dataset
from models.data.source import DamagedImage, read_source
from models.training.setup.data import input_spec
from tests.models.data.parquet_files import CIFAR10, write_parquet
from tests.models.data.test_image_folder import write_classes

CPU = torch.device("cpu")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


def test_a_streamed_image_is_shifted_and_flipped_as_in_memory(tmp_path: Path, pixels: np.ndarray) -> None:
    write_parquet(tmp_path / "train.parquet", pixels[:1], [0])
    source = read_source(CIFAR10, "train", tmp_path)
    spec = input_spec(CIFAR10, 32).model_copy(update={"mean": (0.0,) * 3, "std": (1 / 255,) * 3})
    padded = np.pad(pixels[0], ((4, 4), (4, 4), (0, 0))).transpose(2, 0, 1)
    crops = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    flips = {crop.tobytes(): False for crop in crops} | {crop[:, :, ::-1].tobytes(): True for crop in crops}
    epochs = StreamedBatches(source, spec, batch=1, seed=0, device=torch.device("cpu"), workers=0)
    drawn = [next(epochs.epoch(epoch))[0][0].round().byte().numpy() for epoch in range(64)]
    flipped = [flips[image.tobytes()] for image in drawn]
    assert 16 < sum(flipped) < 48 and len({image.tobytes() for image in drawn}) > 40


def test_normalise_equals_the_preprocessing_of_the_service(pixels: np.ndarray, tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", pixels, list(range(20)))
    source = read_source(CIFAR10, "test", tmp_path)
    prepared = PreparedImages(source, input_spec(CIFAR10, 32))
    served = torch.stack([prepared[index][0] for index in range(len(prepared))])
    torch.testing.assert_close(normalise(source.in_memory(32)[0], CIFAR10.mean, CIFAR10.std), served, atol=1e-5, rtol=0)


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=5, dog=5)
    source = read_source(find_dataset("imagefolder"), "train", tmp_path)
    spec = input_spec(source.dataset, 48)
    alone, together = (
        list(StreamedBatches(source, spec, batch=4, seed=1, device=CPU, workers=workers).epoch(0)) for workers in (0, 2)
    )
    assert len(alone) == len(together) == 2
    for (images, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


STREAM = """
import sys
from pathlib import Path
import torch
from models.data.batches import StreamedBatches
from models.data.datasets import find_dataset
from models.data.source import read_source
from models.training.setup.data import input_spec

source = read_source(find_dataset("imagefolder"), "train", Path(sys.argv[1]))
batches = StreamedBatches(source, input_spec(source.dataset, 224), 8, 1, torch.device("cpu"), workers=2)
print(sum(len(images) for images, _ in batches.epoch(0)))
"""


def test_workers_need_no_shared_memory(tmp_path: Path) -> None:
    """A batch here takes 4.6 MiB as float32. Docker gives a container 64 MiB of shared memory."""
    write_classes(tmp_path / "train", cat=16, dog=16)
    small = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no mount namespace")
    run = [*small, sys.executable, "-c", STREAM, str(tmp_path)]
    ran = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout) == (0, "32\n"), ran.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_by_any_worker(tmp_path: Path, workers: int) -> None:
    write_classes(tmp_path / "train", cat=2, dog=2)
    damaged = tmp_path / "train" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    source = read_source(find_dataset("imagefolder"), "train", tmp_path)
    batches = StreamedBatches(source, input_spec(source.dataset, 48), batch=4, seed=1, device=CPU, workers=workers)
    with pytest.raises(DamagedImage) as caught:
        list(batches.epoch(0))
    assert str(caught.value).startswith(f"{damaged} cannot be read") and "Traceback" not in str(caught.value)
