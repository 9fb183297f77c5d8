"""Contact sheets: the images that execute least and most, with what became of them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.analysis.images import Sample
from models.analysis.routes import Answers

COLUMNS, ROWS, SIDE, CAPTION = 6, 4, 96, 32
FIT = 16
"""Letters that fit under an image."""
PAPER, INK, WRONG = "#ffffff", "#1e293b", "#b91c1c"


def draw_sheets(sample: Sample, answers: Answers, labels: list[str]) -> dict[str, Image.Image]:
    """Return a sheet of the images that execute least and one of those that execute most.

    Ties are broken by how sure the gates are on the whole: the mean probability of executing.
    """
    order = np.lexsort((answers.probability.mean(1), answers.blocks))
    count = min(COLUMNS * ROWS, len(order))
    return {
        "least": draw_sheet(order[:count], sample, answers, labels),
        "most": draw_sheet(order[::-1][:count], sample, answers, labels),
    }


def draw_sheet(chosen: NDArray[np.int64], sample: Sample, answers: Answers, labels: list[str]) -> Image.Image:
    """Return one sheet: under each image its blocks and its class, and in red what it was wrongly
    taken for."""
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8) + 8, rows * (SIDE + CAPTION + 8) + 8), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, index in enumerate(chosen):
        left, top = 8 + place % COLUMNS * (SIDE + 8), 8 + place // COLUMNS * (SIDE + CAPTION + 8)
        image = Image.fromarray(sample.pixels[index])
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        truth, guess = labels[sample.labels[index]], labels[answers.predicted[index]]
        pen.text((left, top + SIDE + 2), f"{answers.blocks[index]}  {truth}"[:FIT], INK, font)
        if guess != truth:
            pen.text((left, top + SIDE + 16), f"not {guess}"[:FIT], WRONG, font)
    return sheet
