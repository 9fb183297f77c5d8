"""skipnet classify photo.jpg …"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from models.errors import UserError
from service.errors import ServiceError
from service.settings import EngineOptions


class Classify(EngineOptions):
    """Classify images without a server, and show which blocks each of them executed."""

    images: CliPositionalArg[list[Path]] = Field(description="image files")
    model: str | None = Field(default=None, description="default: the first by name, those without gates last")
    version: int | None = Field(default=None, ge=0, description="default: the newest")
    top_k: int = Field(default=1, ge=1, description="predictions to show for each image")
    execute_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="0 runs every block, 1 only the first; default: the checkpoint's",
    )
    compute_budget: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the dense MACs to spend on average, instead of a threshold",
    )
    min_margin: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="for a cascade: an image is escalated to the next stage if its confidence is below this",
    )
    as_json: bool = Field(default=False, description="one JSON object a line, with every decision")
    max_image_pixels: int = Field(default=80_000_000, ge=1, description="width x height of an image")

    def cli_cmd(self) -> None:
        import numpy as np

        from models.model_repository import find_version
        from models.preprocessing import prepare
        from service.inference.decoder import BYTES_PER_PIXEL_MOST, Decoder
        from service.inference.result import predictions, routing
        from service.repository.loading import open_version

        model = open_version(find_version(self.model_repository, self.model, self.version), self)
        route = model.choose_route(self.execute_threshold, self.compute_budget, self.min_margin)
        decoder = Decoder(self.max_image_pixels, self.max_image_pixels * BYTES_PER_PIXEL_MOST)
        spec, thresholds, wrong = model.input, np.asarray([route.threshold], np.float32), 0
        for file in self.images:
            try:
                with decoder.decode(file.read_bytes(), spec.resize) as decoded:
                    image = prepare(decoded, spec)
            except (ServiceError, OSError) as error:
                reason = f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else error
                print(f"skipnet: {file}: {reason}", file=sys.stderr)
                wrong += 1
                continue
            routed = model.engine.run(image[None], thresholds)
            [result] = model.results(routed, model.executed_macs(routed))
            found = predictions(result.probabilities, model.labels, self.top_k)
            way = routing(result, model.dense_macs, explain=True)
            if self.as_json:
                shown = {"image": str(file), "predictions": [each.model_dump() for each in found]}
                print(json.dumps(shown | {"routing": way.model_dump(exclude_none=True)}))
                continue
            names = ", ".join(f"{each.label} {each.probability:.1%}" for each in found)
            saved = f"{way.skipped} of {way.blocks} blocks skipped, {way.saved:.1%} saved"
            blocks = draw_blocks(result.executed[: result.blocks - 1].tolist(), sys.stdout.encoding or "ascii")
            print(f"{file}: {names}", f"  {blocks}  {saved}", sep="\n")
        model.engine.close()
        if wrong:
            raise UserError(f"{wrong} of {len(self.images)} images could not be classified")


def draw_blocks(executed: Sequence[bool], encoding: str) -> str:
    """Return a character for each block with the first one: █ for executed and ░ for skipped, or # and ."""
    on, off = "█░"
    try:
        (on + off).encode(encoding)
    except UnicodeEncodeError:
        on, off = "#."
    return on + "".join(on if each else off for each in executed)
