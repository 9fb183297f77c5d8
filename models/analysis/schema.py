"""The content of analysis.json: the measurements of `skipnet analyze`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from models.analysis.adversarial import AttackResult
from models.analysis.routes import Quantiles
from models.analysis.stability import ExecutionBenefit, FlipRates, ReliabilityBin
from models.checkpoint import FixedRoute
from models.errors import UserError

ANALYSIS = "analysis.json"


@dataclass(frozen=True)
class ClassRoutes:
    """The images of one class: number, accuracy, and mean and quantiles of the executed blocks."""

    label: str
    images: int
    accuracy: float
    blocks: float
    quantiles: Quantiles


@dataclass(frozen=True)
class AppearanceEffect:
    """How the executed blocks depend on one measure of appearance.

    ``correlation`` is Spearman's. ``centres`` and ``blocks`` are means of the measure and of the executed blocks in
    each fifth of the images, sorted by the measure.
    """

    name: str
    correlation: float
    centres: list[float]
    blocks: list[float]


@dataclass(frozen=True)
class AlterationEffect:
    """The same images altered in several strengths.

    ``blocks`` and ``accuracy`` are means at each strength. ``change`` are the quantiles of the change in executed
    blocks against the unaltered image.
    """

    name: str
    neutral: float
    strengths: list[float]
    blocks: list[float]
    accuracy: list[float]
    change: list[Quantiles]


@dataclass(frozen=True)
class Analysis:
    """The routes of a checkpoint on a data set.

    Shares and accuracies are in 0..1. Block counts include the first block. ``groups`` is the group of each block,
    ``histogram`` the number of images by executed blocks. ``macs`` are the mean MACs of an image. ``fixed_routes``
    compares with the same weights along one route. Files of older versions call ``appearance`` "looks" and
    ``execution_benefit`` "worth", and have neither MACs nor fixed routes.
    """

    model: str
    dataset: str
    split: str
    images: int
    altered_images: int
    engine: str
    execute_threshold: float
    blocks: int
    groups: list[int]
    accuracy: float
    mean_blocks: float
    mac_share: float
    histogram: list[int]
    accuracy_by_blocks: list[float | None]
    execution_rate: list[float]
    paths: int
    path_shares: list[float]
    classes: list[ClassRoutes]
    appearance: Annotated[list[AppearanceEffect], Field(validation_alias=AliasChoices("appearance", "looks"))]
    altered: list[AlterationEffect]
    flips: list[FlipRates]
    reliability: list[ReliabilityBin]
    execution_benefit: Annotated[
        list[ExecutionBenefit], Field(validation_alias=AliasChoices("execution_benefit", "worth"))
    ]
    attacks: list[AttackResult]
    macs: float | None = None
    fixed_routes: list[FixedRoute] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the analysis for JSON, with numbers rounded to four digits."""
        rounded = round_floats(TypeAdapter(Analysis).dump_python(self))
        assert isinstance(rounded, dict)
        return rounded


def round_floats(value: Any) -> Any:
    """Return nested lists and dicts with every float rounded to four digits."""
    if isinstance(value, dict):
        return {key: round_floats(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [round_floats(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def read_analysis(folder: Path) -> Analysis | None:
    """Return the analysis in a checkpoint folder, or None if there is none.

    Raises UserError for a damaged file.
    """
    path = folder / ANALYSIS
    if not path.is_file():
        return None
    try:
        return TypeAdapter(Analysis).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} cannot be read: run `skipnet analyze … --write` again ({error})") from error
