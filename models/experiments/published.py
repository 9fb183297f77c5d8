"""Published figures, which the results table shows beside those of this project."""

import tomllib
from functools import cache

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from models.experiments.catalogue import FOLDER


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Published:
    """Published top-1 accuracy and computation percentage (0..100) of a network and row, with their source.

    ``network`` is the data set and the depth, for instance "cifar10_38".
    """

    network: str
    row: str
    source: str
    accuracy: float | None = None
    computation: float | None = None


@cache
def published_figures() -> dict[tuple[str, str], Published]:
    """Return the published figures by network and row."""
    content = tomllib.loads((FOLDER / "published.toml").read_text())
    figures = TypeAdapter(list[Published]).validate_python(content["published"])
    return {(each.network, each.row): each for each in figures}
