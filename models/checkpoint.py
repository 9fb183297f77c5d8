"""A checkpoint on disk: a folder with ``model.safetensors`` and ``config.json``."""

import codecs
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.architectures import UnknownArchitecture, find_architecture
from models.errors import UserError
from models.macs import MacCounts, count_macs
from models.network import SkipNet
from models.persistence.atomic_file import whole_file
from models.persistence.training_record import TrainingRecord
from models.preprocessing import InputSpec

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CASCADE: Literal["cascade"] = "cascade"
"""The ``kind`` in the config.json of a cascade (`models.cascade`), which has no weights."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or written. The message says what to do."""


Label = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]
"""A class name in Unicode's composed form, as image folders have them."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationPoint(Strict):
    """Accuracy and computation at one execute threshold, measured on the validation images."""

    threshold: float = Field(ge=0, le=1)
    accuracy: float
    computation_percentage: float
    mac_share: float


class FixedRoute(Strict):
    """The same weights along one route for every image: ``blocks`` gated blocks with ``macs`` MACs, without gates.

    ``gain`` is the accuracy of routing by image less that of the route. ``gain_error`` is the standard error of this
    paired difference. Accuracies are in 0..1.
    """

    blocks: int
    accuracy: float
    macs: int
    gain: float
    gain_error: float


class Evaluation(Strict):
    """The figures of `skipnet evaluate`. Shares and accuracies are in 0..1. MACs are means over the images."""

    dataset: str
    split: str
    images: int
    engine: str
    execute_threshold: float
    accuracy: float
    computation_percentage: float
    macs: float
    dense_macs: int
    decisions_skipped: float
    execution_rate: list[float]
    accuracy_per_class: dict[str, float]
    fixed_routes: list[FixedRoute] = []


class Quantization(Strict):
    """The figures of `skipnet quantize`, for an engine that computes the blocks in 16-bit integers.

    ``activation_limits`` has a list for each block: the largest magnitudes of the inputs of its residual convolutions.
    They are the scales of the integers, measured on ``calibration_images``. The other figures compare the quantised
    network with float32 on ``images`` other validation images. Shares and accuracies are in 0..1.
    """

    activation_limits: list[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]]
    calibration_images: int
    images: int
    execute_threshold: float
    decisions_changed: float
    labels_changed: float
    accuracy: float
    float_accuracy: float


class Config(Strict):
    """The content of ``config.json``."""

    architecture: str
    labels: list[Label] = Field(min_length=1)
    input: InputSpec
    execute_threshold: float = Field(0.5, ge=0, le=1)
    training: TrainingRecord = TrainingRecord()
    evaluation: Evaluation | None = None
    calibration: list[CalibrationPoint] = []
    quantization: Quantization | None = None
    code: str


@dataclass(frozen=True)
class Checkpoint:
    """A network and its config. ``network`` is float32 on the CPU, in evaluation mode."""

    folder: Path
    config: Config
    network: SkipNet

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> int:
        """The number of the folder, or 0 for a checkpoint outside of a repository."""
        return int(self.folder.name) if self.folder.name.isdecimal() else 0

    @cached_property
    def macs(self) -> MacCounts:
        return count_macs(self.network, self.config.input.height, self.config.input.width)


def code_version() -> str:
    """Return the version of this code, which every checkpoint records."""
    return f"skipnet-serve {metadata.version('skipnet-serve')}"


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises CheckpointError if a file is missing or damaged, the weights do not fit the architecture, or the folder
    holds a pickle instead of safetensors.
    """
    config = read_config(folder)
    try:
        network = find_architecture(config.architecture).build(len(config.labels))
    except UnknownArchitecture as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read as safetensors ({error}); copy it again") from error
    fit_state(network, {key: value.float() for key, value in state.items()}, folder / WEIGHTS)
    return Checkpoint(folder, config, network.eval())


def fit_state(
    network: SkipNet,
    state: Mapping[str, Tensor],
    origin: Path,
    remedy: str = f"check `architecture` and `labels` in {CONFIG}",
) -> None:
    """Load ``state`` into ``network``.

    ``remedy`` is what the error tells the user to do. Raises CheckpointError if names, shapes or values are not the
    network's.
    """
    # Batch norm's count of batches has no effect on the output. Checkpoints are written without it.
    expected, state = without_batch_counts(network.state_dict()), without_batch_counts(state)
    wrong = sorted(expected.keys() ^ state.keys()) or [
        key for key, value in expected.items() if value.shape != state[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{origin} does not hold the weights of this architecture: {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} missing, unexpected or of another shape; "
            f"{remedy}"
        )
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{origin}: {broken[0]} holds NaN or infinity; the training run failed, take another")
    network.load_state_dict(state, strict=False)


def without_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the counts of batches that batch norm keeps."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def is_cascade(folder: Path) -> bool:
    """Return whether a version's folder has a readable config of a cascade."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("kind") == CASCADE


def read_config(folder: Path) -> Config:
    """Read a checkpoint's ``config.json`` alone.

    Raises CheckpointError as `read_checkpoint` does.
    """
    try:
        complete = (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if not complete:
        pickles = sorted(file.name for pattern in ("*.pth*", "*.pt", "*.bin") for file in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{folder} holds {pickles[0]}, a pickle, which could run code when loaded; "
                f"convert it: skipnet import {folder / pickles[0]} --arch NAME --output {folder}"
            )
        if is_cascade(folder):
            raise CheckpointError(f"{folder} is a cascade, which has several networks: name one of its stages")
        there = version_numbers(folder)
        remedy = choose_among(there) if there else f"it should hold {WEIGHTS} and {CONFIG}"
        raise CheckpointError(f"{folder} is not a checkpoint: {remedy}")
    try:
        return Config.model_validate_json((folder / CONFIG).read_bytes().removeprefix(codecs.BOM_UTF8))
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error


def write_checkpoint(folder: Path, network: SkipNet, config: Config, half: bool = False) -> None:
    """Write a checkpoint folder, ``config.json`` last. Files appear complete or not at all.

    With ``half``, matrices are stored as float16. Vectors stay float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: (value.half() if half and value.ndim > 1 else value).detach().cpu().contiguous()
        for key, value in without_batch_counts(network.state_dict()).items()
    }
    # save_file would create a file that only its owner may read. Trainer and service may be different users.
    with whole_file(folder / WEIGHTS) as file:
        file.write(save(state))
    write_config(folder, config)


def is_half(folder: Path) -> bool:
    """Return whether a checkpoint stores its matrices as float16."""
    return any(value.dtype == torch.float16 for value in load_file(folder / WEIGHTS).values())


def write_config(folder: Path, config: Config) -> None:
    """Write ``config.json``, or replace it at once."""
    with whole_file(folder / CONFIG) as file:
        file.write(json.dumps(config.model_dump(mode="json"), indent=2).encode() + b"\n")


def version_numbers(model: Path) -> list[int]:
    """Return the version numbers in a model's folder, ascending."""
    return sorted(int(folder.name) for folder in model.glob("*") if is_version(folder))


def choose_among(numbers: list[int]) -> str:
    return f"name one of its versions: {', '.join(map(str, numbers))}"


def is_version(folder: Path) -> bool:
    """Return whether a folder's name is a version number without leading zeros."""
    try:
        return folder.name.isdecimal() and folder.name == str(int(folder.name)) and folder.is_dir()
    except OSError:  # The folder exists but cannot be read. Loading it reports the error.
        return True
