"""Contact sheets of the images that execute the fewest and the most blocks."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.analysis.routes import Outputs
from models.analysis.sample import Sample

COLUMNS, ROWS, SIDE, CAPTION = 6, 4, 96, 32
CAPTION_LETTERS = 16
"""Letters that fit under an image."""
BACKGROUND, TEXT, WRONG = "#ffffff", "#1e293b", "#b91c1c"


def draw_sheets(sample: Sample, outputs: Outputs, labels: list[str]) -> dict[str, Image.Image]:
    """Return the sheets "least" and "most": the images that execute the fewest and the most blocks.

    Images with the same number of blocks are sorted by the mean execute probability of their gates.
    """
    order = np.lexsort((outputs.probability.mean(1), outputs.blocks))
    count = min(COLUMNS * ROWS, len(order))
    return {
        "least": draw_sheet(order[:count], sample, outputs, labels),
        "most": draw_sheet(order[::-1][:count], sample, outputs, labels),
    }


def draw_sheet(chosen: NDArray[np.int64], sample: Sample, outputs: Outputs, labels: list[str]) -> Image.Image:
    """Return one sheet. Each caption has the executed blocks and the class, and a wrong prediction in red."""
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8) + 8, rows * (SIDE + CAPTION + 8) + 8), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, index in enumerate(chosen):
        left, top = 8 + place % COLUMNS * (SIDE + 8), 8 + place // COLUMNS * (SIDE + CAPTION + 8)
        image = Image.fromarray(sample.pixels[index])
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        truth, guess = labels[sample.labels[index]], labels[outputs.predicted[index]]
        pen.text((left, top + SIDE + 2), f"{outputs.blocks[index]}  {truth}"[:CAPTION_LETTERS], TEXT, font)
        if guess != truth:
            pen.text((left, top + SIDE + 16), f"not {guess}"[:CAPTION_LETTERS], WRONG, font)
    return sheet
