from dataclasses import replace

import pytest

from models.analysis.paper_claims import check_claims
from models.analysis.schema import AlterationEffect, Analysis, AppearanceEffect, ClassRoutes

ZEROS = (0.0,) * 5


def altered(name: str, strengths: list[float], blocks: list[float], neutral: float) -> AlterationEffect:
    return AlterationEffect(name, neutral, strengths, blocks, [0.9] * len(blocks), [ZEROS] * len(blocks))


@pytest.fixture
def analysis() -> Analysis:
    return Analysis(
        model="m", dataset="d", split="test", images=10, altered_images=10, engine="e", execute_threshold=0.5,
        blocks=9, groups=[0, 0, 0, 1, 1, 1, 2, 2, 2], accuracy=0.9, mean_blocks=5, mac_share=0.5, histogram=[],
        accuracy_by_blocks=[], execution_rate=[1, 0, 1, 1, 0.9, 1, 1, 0.2, 0.9], paths=3, path_shares=[1.0],
        classes=[ClassRoutes("truck", 5, 0.9, 4.0, ZEROS), ClassRoutes("dog", 5, 0.8, 6.0, ZEROS)],
        appearance=[
            AppearanceEffect("brightness", 0.2, [], []), AppearanceEffect("contrast", -0.3, [], []),
            AppearanceEffect("sharpness", 0.01, [], []),
        ],
        altered=[
            altered("brightness", [0.5, 1], [6, 5], 1), altered("contrast", [0.5, 1], [4, 5], 1),
            altered("blur", [0, 2], [5, 5.01], 0), altered("scale", [0.75, 1, 1.5], [4, 5, 6], 1),
        ],
        flips=[], reliability=[], execution_benefit=[], attacks=[],
    )  # fmt: skip


def test_each_claim_is_judged_by_its_own_sign(analysis: Analysis) -> None:
    judged = {row.claim: row.holds for row in check_claims(analysis)}
    assert judged == {
        "images of high brightness are easy": "no",
        "images of high contrast are easy": "yes",
        "images of fine detail are easy": "no difference",
        "the same image, half as bright, is harder": "yes",
        "the same image with half the contrast is harder": "no",
        "the same image, blurred, is harder": "no difference",
        "the same image, smaller, executes less": "yes",
        "the same image, larger, executes more": "yes",
        "dogs are hard, trucks easy": "yes",
        "first and last blocks of a group matter most": "yes",
        "the second group is skipped least": "yes",
    }


def test_without_dogs_there_is_no_claim_about_them(analysis: Analysis) -> None:
    claims = check_claims(replace(analysis, classes=analysis.classes[:1]))
    assert not any("dogs" in row.claim for row in claims)


def test_a_dog_among_the_easy_half_makes_the_claim_hold_in_part(analysis: Analysis) -> None:
    harder = [ClassRoutes(label, 5, 0.9, 7.0, ZEROS) for label in ("cat", "deer")]
    [judged] = [
        row for row in check_claims(replace(analysis, classes=[*analysis.classes, *harder])) if "dogs" in row.claim
    ]
    assert judged.holds == "in part"
