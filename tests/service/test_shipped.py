"""The shipped checkpoint, served as `make serve` does: photos get the right label and skip blocks."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from models.data.datasets import find_dataset
from service.settings import Settings
from tests.models.data.test_data import packs
from tests.service.parts import Running, encoded, post

PHOTOS = Path(__file__).parents[1] / "photos"


@pytest.fixture(scope="module")
def shipped() -> Iterator[Running]:
    server = Running(Settings()).wait_ready()
    yield server
    server.stop()


def test_cat_is_a_cat(shipped: Running) -> None:
    answer = shipped.client.post("/classify", files={"image": (PHOTOS / "cat.jpg").read_bytes()})
    assert answer.json()["predictions"][0]["label"] == "cat"


def test_a_photo_of_an_unknown_class_is_classified(shipped: Running) -> None:
    answer = shipped.client.post("/classify", files={"image": (PHOTOS / "rocket.jpg").read_bytes()})
    assert answer.status_code == 200


@pytest.fixture(scope="module")
def answers(shipped: Running) -> list[tuple[str, dict[str, object]]]:
    """The true label and the answer for 300 images of CIFAR-10's test split, from the research data."""
    pixels, truth = packs().read("cifar10", "test")
    labels = find_dataset("cifar10").classes
    return [
        (labels[int(true)], post(shipped, encoded(Image.fromarray(image))).json())
        for image, true in zip(pixels[:300], truth[:300], strict=True)
    ]


def test_labels_are_right(answers: list[tuple[str, dict[str, object]]]) -> None:
    right = [true == answer["predictions"][0]["label"] for true, answer in answers]  # type: ignore[index]
    # At an accuracy of 86 %, the chance of less than 80 % of 300 images is one in a thousand.
    assert np.mean(right) >= 0.80


def test_skipping_varies_from_image_to_image(answers: list[tuple[str, dict[str, object]]]) -> None:
    skipped = [answer["routing"]["skipped"] for _, answer in answers]  # type: ignore[index]
    assert len(set(skipped)) >= 3
    assert np.mean(skipped) >= 0.2 * 17


def test_skipping_every_block_takes_less_than_half_the_time(shipped: Running) -> None:
    with Image.open(PHOTOS / "cat.jpg") as photo:
        image = photo.resize((32, 32))

    def inference(threshold: int) -> float:
        answer = post(shipped, encoded(image), f"?execute_threshold={threshold}").json()
        return float(answer["timing_ms"]["inference"])

    # Taken alternately, so that other load of the machine affects both equally.
    times = [(inference(0), inference(1)) for _ in range(40)]
    assert median(none for _, none in times) < median(every for every, _ in times) / 2
