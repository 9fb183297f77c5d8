"""The shipped checkpoint, served as `make serve` does: photos get the right label and skip blocks."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from models import SHIPPED
from models.cascade.config import read_cascade_config
from models.data.datasets import find_dataset
from service.settings import Settings
from tests.models.data.parquet_files import read_images
from tests.service.parts import Running, encoded, post, until

PHOTOS = Path(__file__).parents[1] / "photos"
CASCADE = {"model": "cifar10_cascade", "version": "2"}


@pytest.fixture(scope="module")
def shipped() -> Iterator[Running]:
    server = Running(Settings()).wait_ready()
    yield server
    server.stop()


def test_the_photo_of_a_cat_is_a_cat(shipped: Running) -> None:
    response = shipped.client.post("/classify", files={"image": (PHOTOS / "cat.jpg").read_bytes()})
    assert response.json()["predictions"][0]["label"] == "cat"


def test_a_photo_of_an_unknown_class_is_classified(shipped: Running) -> None:
    response = shipped.client.post("/classify", files={"image": (PHOTOS / "rocket.jpg").read_bytes()})
    assert response.status_code == 200


@pytest.fixture(scope="module")
def responses(shipped: Running) -> list[tuple[str, dict[str, object]]]:
    """The true label and the response for 300 images of CIFAR-10's test split, from the research data."""
    pixels, truth = read_images("cifar10", "test")
    labels = find_dataset("cifar10").classes
    return [
        (labels[int(true)], post(shipped, encoded(Image.fromarray(image))).json())
        for image, true in zip(pixels[:300], truth[:300], strict=True)
    ]


def test_labels_are_right(responses: list[tuple[str, dict[str, object]]]) -> None:
    right = [true == response["predictions"][0]["label"] for true, response in responses]  # type: ignore[index]
    # At an accuracy of 86 %, the chance of less than 80 % of 300 images is one in a thousand.
    assert np.mean(right) >= 0.80


def test_skipping_varies_from_image_to_image(responses: list[tuple[str, dict[str, object]]]) -> None:
    skipped = [response["routing"]["skipped"] for _, response in responses]  # type: ignore[index]
    assert len(set(skipped)) >= 3
    assert np.mean(skipped) >= 0.2 * 17


def scaled(probabilities: dict[str, float], temperature: float) -> dict[str, float]:
    """Return the probabilities of logits that are divided by a temperature."""
    powers = {label: probability ** (1 / temperature) for label, probability in probabilities.items()}
    return {label: power / sum(powers.values()) for label, power in powers.items()}


def test_the_cascade_equals_its_stages_requested_separately(shipped: Running) -> None:
    """For 120 images: label probabilities, MACs, blocks and counters are those of the two stages."""
    pixels, _ = read_images("cifar10", "test")
    config = read_cascade_config(SHIPPED / "cifar10_cascade" / "2")
    margin = config.stages[0].margin
    assert margin is not None and config.combination == "mean" and config.measure == "margin"
    before = [shipped.metric("cascade_images_total", **CASCADE, stage=stage) for stage in ("0", "1")]
    escalated = 0
    for image in pixels[:120]:
        sent = encoded(Image.fromarray(image))
        queries = [f"?top_k=10&model={stage.model}&version={stage.version}" for stage in config.stages]
        queries[0] += f"&execute_threshold={config.stages[0].execute_threshold}"
        cascaded = post(shipped, sent, "?top_k=10").json()
        stages = [post(shipped, sent, query).json() for query in queries]
        shares = [
            scaled({each["label"]: each["probability"] for each in response["predictions"]}, stage.temperature)
            for response, stage in zip(stages, config.stages, strict=True)
        ]
        first, second = sorted(shares[0].values(), reverse=True)[:2]
        # Responses round probabilities. An image near the margin may be escalated or not.
        if abs(first - second - margin) < 1e-3:
            continue
        ran = 2 if first - second < margin else 1
        escalated += ran - 1
        assert [stage["model"] for stage in cascaded["routing"]["stages"]] == [
            each.model for each in config.stages[:ran]
        ]
        assert cascaded["routing"]["macs"] == sum(response["routing"]["macs"] for response in stages[:ran])
        assert cascaded["routing"]["executed"] == sum(response["routing"]["executed"] for response in stages[:ran])
        for each in cascaded["predictions"]:
            expected = sum(share[each["label"]] for share in shares[:ran]) / ran
            assert each["probability"] == pytest.approx(expected, abs=1e-3)
    assert escalated > 0
    until(lambda: shipped.metric("cascade_images_total", **CASCADE, stage="0") == before[0] + 120)
    assert shipped.metric("cascade_images_total", **CASCADE, stage="1") - before[1] >= escalated


def test_skipping_every_block_takes_less_than_half_the_time(shipped: Running) -> None:
    with Image.open(PHOTOS / "cat.jpg") as photo:
        image = photo.resize((32, 32))

    def inference(threshold: int) -> float:
        response = post(shipped, encoded(image), f"?execute_threshold={threshold}").json()
        return float(response["timing_ms"]["inference"])

    # They are measured alternately, so that other processes affect both equally.
    times = [(inference(0), inference(1)) for _ in range(40)]
    assert median(none for _, none in times) < median(every for every, _ in times) / 2
