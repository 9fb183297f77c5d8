"""A checkpoint on disk: ``<repository>/<model>/<version>/`` with ``model.safetensors`` and ``config.json``."""

import json
import re
import shutil
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models.architectures import UnknownArchitecture, find_architecture
from models.atomic_file import whole_file
from models.legacy_names import current_names
from models.macs import MacCounts, count_macs
from models.network import SkipNet
from models.preprocessing import InputSpec

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class CheckpointError(ValueError):
    """A checkpoint can't be read or written; the message says what to do."""


Label = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]
"""A class name in Unicode's composed form, as image folders have them."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationPoint(Strict):
    """What one execute threshold gives on held-out images."""

    threshold: float = Field(ge=0, le=1)
    accuracy: float
    computation_percentage: float
    mac_share: float


class Evaluation(Strict):
    """What `skipnet evaluate` measured. Shares and accuracies are in 0..1, MACs are means of an image."""

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


class Config(Strict):
    """``config.json``: everything about the weights but the weights."""

    architecture: str
    labels: list[Label] = Field(min_length=1)
    input: InputSpec
    execute_threshold: float = Field(0.5, ge=0, le=1)
    training: Annotated[dict[str, Any], BeforeValidator(current_names)] = {}
    evaluation: Evaluation | None = None
    calibration: list[CalibrationPoint] = []
    code: str


@dataclass(frozen=True)
class Checkpoint:
    """A network with all that belongs to it; ``network`` is float32 on the CPU, in evaluation mode."""

    folder: Path
    config: Config
    network: SkipNet

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> int:
        """The folder's number; 0 for a checkpoint that lies outside a repository."""
        return int(self.folder.name) if self.folder.name.isdecimal() else 0

    @cached_property
    def macs(self) -> MacCounts:
        return count_macs(self.network, self.config.input.height, self.config.input.width)


def code_version() -> str:
    """Return the version of this code, written into every checkpoint."""
    return f"skipnet-serve {metadata.version('skipnet-serve')}"


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises CheckpointError, with what to do, where a file is missing or damaged, the weights don't fit the
    architecture, or the folder holds a pickle instead of safetensors.
    """
    config = read_config(folder)
    try:
        network = find_architecture(config.architecture).build(len(config.labels))
    except UnknownArchitecture as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} can't be read as safetensors ({error}); copy it again") from error
    fit_state(network, {key: value.float() for key, value in state.items()}, folder / WEIGHTS)
    return Checkpoint(folder, config, network.eval())


def fit_state(
    network: SkipNet,
    state: dict[str, torch.Tensor],
    origin: Path,
    remedy: str = f"check `architecture` and `labels` in {CONFIG}",
) -> None:
    """Load ``state`` into ``network``; raises CheckpointError where names, shapes or values are not the network's.

    ``remedy`` is what the error tells the user to do.
    """
    # The count of batches seen matters to no answer, so checkpoints do without it.
    expected = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
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


def read_config(folder: Path) -> Config:
    """Read a checkpoint's ``config.json`` alone; raises CheckpointError as `read_checkpoint` does."""
    try:
        complete = (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error}") from error
    if not complete:
        pickles = sorted(file.name for pattern in ("*.pth*", "*.pt", "*.bin") for file in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{folder} holds {pickles[0]}, a pickle, which could run code when loaded; "
                f"convert it: skipnet import {folder / pickles[0]} --arch NAME --output {folder}"
            )
        there = version_numbers(folder)
        remedy = choose_among(there) if there else f"it should hold {WEIGHTS} and {CONFIG}"
        raise CheckpointError(f"{folder} is no checkpoint: {remedy}")
    try:
        return Config.model_validate_json((folder / CONFIG).read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{folder / CONFIG} can't be read: {error}") from error


def write_checkpoint(folder: Path, network: SkipNet, config: Config, half: bool = False) -> None:
    """Write a checkpoint folder; each file appears whole or not at all, ``config.json`` last.

    ``half`` keeps matrices as float16; batch norm's numbers and biases, which are few, stay float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: (value.half() if half and value.ndim > 1 else value).detach().cpu().contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    # Not save_file, whose file only its owner may read: trainer and service may be two users.
    with whole_file(folder / WEIGHTS) as file:
        file.write(save(state))
    write_config(folder, config)


def is_half(folder: Path) -> bool:
    """Whether a checkpoint that can be read keeps its matrices as float16."""
    return any(value.dtype == torch.float16 for value in load_file(folder / WEIGHTS).values())


def write_config(folder: Path, config: Config) -> None:
    """Write ``config.json``, replacing an older one whole."""
    with whole_file(folder / CONFIG) as file:
        file.write(json.dumps(config.model_dump(mode="json"), indent=2).encode() + b"\n")


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of model ``name`` in a repository, ascending.

    Raises CheckpointError where the name could leave the repository's folder.
    """
    if not MODEL_NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} can't be a model's name: letters, digits, '_', '-' and '.', at most 100, "
            "beginning with a letter or digit"
        )
    return version_numbers(repository / name)


def version_numbers(model: Path) -> list[int]:
    """Return the versions in a model's folder, ascending."""
    return sorted(int(folder.name) for folder in model.glob("*") if is_version(folder))


def choose_among(numbers: list[int]) -> str:
    return f"name one of its versions: {', '.join(map(str, numbers))}"


def is_version(folder: Path) -> bool:
    """Whether a folder is named as a version is: by its number, which begins with no zero but that of 0."""
    try:
        return folder.name.isdecimal() and folder.name == str(int(folder.name)) and folder.is_dir()
    except OSError:  # What can't be looked at lies there; loading it says what is wrong.
        return True


def model_names(repository: Path) -> set[str]:
    """Return the names in a repository that can be a model's and have a version."""
    names = {folder.parent.name for folder in repository.glob("*/*") if is_version(folder)}
    return {name for name in names if MODEL_NAME.fullmatch(name)}


def models(repository: Path) -> list[str]:
    """Return the models of a repository, but those without gates last: the first is what to use by default.

    They are in the order of their names, where numbers count as such: cifar10 comes before cifar100.
    """
    return sorted(model_names(repository), key=lambda name: (is_plain(repository, name), name_order(name), name))


def name_order(name: str) -> list[tuple[int, str]]:
    """Return what orders a name as people do: its numbers by value, whatever is between them by letters."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def is_plain(repository: Path, name: str) -> bool:
    """Whether a model's newest version is a network without gates; one that can't be read is none."""
    try:
        newest = read_config(repository / name / str(max(versions(repository, name))))
        return find_architecture(newest.architecture).gates is None
    except (CheckpointError, UnknownArchitecture):
        return False


def find_version(repository: Path, model: str | None, version: int | None) -> Path:
    """Return the folder of a model's version in a repository: the newest by default, of the first of `models`.

    Raises CheckpointError where the repository holds none such.
    """
    name = model if model is not None else next(iter(models(repository)), None)
    found = versions(repository, name) if name is not None else []
    number = version if version is not None else max(found, default=None)
    if number not in found:
        wanted = f"{name or 'model'}{'' if version is None else f' version {version}'}"
        if found:
            raise CheckpointError(f"{repository} holds no {wanted}; {choose_among(found)}")
        there = ", ".join(models(repository)) or "nothing"
        raise CheckpointError(f"{repository} holds no {wanted}, but {there}; see --model-repository")
    return repository / str(name) / str(number)


def require_labels(repository: Path, name: str, labels: list[str]) -> None:
    """Raise CheckpointError where the model's newest version that can be read has other labels, which its clients
    would then get unasked, or the name can't be a model's.
    """
    for version in reversed(versions(repository, name)):
        folder = repository / name / str(version)
        try:
            known = read_config(folder).labels
        except CheckpointError:
            continue
        if known != labels:
            raise CheckpointError(f"{folder} has other labels, which clients of {name} count on: take another --model")
        return


def publish(folder: Path, repository: Path, name: str) -> Path:
    """Copy a checkpoint into a repository as the model's next version; it appears there whole, by one rename.

    Raises CheckpointError where the folder holds none, or `require_labels` does.
    """
    require_labels(repository, name, read_config(folder).labels)
    number = max(versions(repository, name), default=0) + 1
    target = repository / name / str(number)
    partial = target.with_name(f".{number}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in (WEIGHTS, CONFIG):
        shutil.copyfile(folder / file, partial / file)
    partial.rename(target)
    return target
