"""Read a pretrained ResNet from any source: recognise its format, and return it as a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from models.checkpoint import CONFIG, Checkpoint, Config, code_version, fit_state, read_checkpoint, write_checkpoint
from models.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from models.errors import UserError
from models.importing import timm_folder, transformers_folder
from models.importing.backbone import recognise
from models.importing.public_checkpoint import load_public
from models.importing.remote import SUFFIXES, WEIGHTS, is_remote, local_copy, public_name
from models.importing.state_names import rename_state
from models.importing.weights_file import read_weights
from models.persistence.training_record import TrainingRecord
from models.preprocessing import InputSpec

TORCHVISION_INPUT = InputSpec(
    height=224,
    width=224,
    resize=256,
    interpolation="bilinear",
    resize_rule="torchvision",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
"""The preprocessing of torchvision's reference training, for weights without preprocessing."""


@dataclass(frozen=True)
class Source:
    """A local weights file, the config.json beside it, and its name in errors and records."""

    weights: Path
    config: Mapping[str, Any]
    name: str


def import_source(source: str, output: Path, arch: str | None = None, labels: Sequence[str] | None = None) -> Config:
    """Write the checkpoint folder ``output`` from ``source`` and return its config.

    The arguments are those of `load_source`.
    """
    checkpoint = load_source(source, arch, labels)
    write_checkpoint(output, checkpoint.network, checkpoint.config)
    return checkpoint.config


def load_source(source: str, arch: str | None = None, labels: Sequence[str] | None = None) -> Checkpoint:
    """Return the network that ``source`` holds, with labels and preprocessing.

    ``source`` is a checkpoint folder, a weights file (`torch.save` or safetensors, under the names of torchvision,
    timm, or the public SkipNet code), a folder of transformers or timm with its config.json, or the URL of one of them
    (`models.importing.remote`). ``arch`` is necessary only for weights of the public code. ``labels`` replace the
    source's labels. If there are none, the labels are class numbers. If the source has no preprocessing, it is
    torchvision's. Raises UserError if the source cannot be read, is a network that does not run here, or has another
    number of classes than ``labels``.
    """
    remote = is_remote(source)
    with local_copy(source) if remote else nullcontext(Path(source)) as path:
        checkpoint = read_source(path, public_name(source) if remote else str(source), arch)
    return checkpoint if labels is None else with_labels(checkpoint, list(labels), source)


def read_source(path: Path, name: str, arch: str | None) -> Checkpoint:
    """Return the network in a local file or folder."""
    found = find_files(path, name)
    if path.is_dir() and "input" in found.config:
        return read_checkpoint(path)
    if arch is not None:
        return load_public(found.weights, arch, recorded_name(name))
    state, _ = read_weights(found.weights)
    try:
        spec, labels = describe(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: {CONFIG} cannot be read ({type(error).__name__}: {error}); copy it again") from error
    # Weights of transformers can also be alone in a file.
    return build(found, transformers_folder.rename_to_torchvision(state), spec, labels)


def describe(found: Source) -> tuple[InputSpec, Any]:
    """Return the preprocessing and the labels in the configuration.

    Raises UserError for another network.
    """
    config = found.config
    if "model_type" in config:
        transformers_folder.check_config(config, found.name)
        file = found.weights.with_name(transformers_folder.PREPROCESSOR)
        return transformers_folder.input_spec(read_json(file), file), config.get("id2label")
    if "architecture" in config and "input" not in config:
        timm_folder.check_config(config, found.name)
        return timm_folder.input_spec(config), timm_folder.label_names(config)
    return TORCHVISION_INPUT, None


def build(found: Source, state: Mapping[str, Tensor], spec: InputSpec, stored: Any) -> Checkpoint:
    """Return the checkpoint of a plain ResNet with weights under torchvision's names."""
    architecture = recognise(state, found.name)
    network = architecture.build(len(state["fc.bias"]))
    fit_state(network, rename_state(dict(state), architecture), Path(found.name), "choose another file")
    config = Config(
        architecture=architecture.name,
        labels=complete_labels(stored, len(state["fc.bias"]), found.name),
        input=spec,
        training=TrainingRecord(imported_from=recorded_name(found.name)),
        code=code_version(),
    )
    return Checkpoint(found.weights.parent, config, network.eval())


def find_files(path: Path, name: str) -> Source:
    """Return the weights file and the config.json at ``path``, which is a weights file or a folder with one."""
    if not path.is_dir():
        return Source(path, read_json(path.with_name(CONFIG), missing={}), name)
    weights = [path / file for file in WEIGHTS if (path / file).is_file()]
    weights = weights or sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    if not weights or (len(weights) > 1 and weights[0].name not in WEIGHTS):
        there = f"several weights files, {', '.join(file.name for file in weights)}" if weights else "no weights file"
        raise UserError(f"{name} holds {there}: name the file itself")
    return Source(weights[0], read_json(path / CONFIG, missing={}), name)


def read_json(file: Path, missing: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return the object in a JSON file, or ``missing`` if the file does not exist.

    Raises UserError if the file is necessary.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        if missing is None:
            raise UserError(f"{file} is missing, which says how images are prepared: copy it too") from error
        return missing
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} cannot be read: it holds no JSON object")
    return content


def complete_labels(stored: Any, classes: int, source: str) -> list[str]:
    """Return one label for each class: the stored labels, by number or in order, or else the class numbers."""
    if not stored:
        return [str(number) for number in range(classes)]
    by_number = dict(stored) if isinstance(stored, Mapping) else dict(enumerate(stored))
    named = {int(number): str(label) for number, label in by_number.items()}
    if sorted(named) != list(range(classes)):
        raise UserError(
            f"{source} has {classes} classes, but labels for {len(named)} in its {CONFIG}: correct them there, "
            "or give all with --labels"
        )
    return [named[number] for number in range(classes)]


def with_labels(checkpoint: Checkpoint, labels: list[str], source: str) -> Checkpoint:
    """Return the checkpoint with other labels.

    Raises UserError for a wrong number of labels.
    """
    classes = len(checkpoint.config.labels)
    if len(labels) != classes:
        raise UserError(f"{source} has {classes} classes, not {len(labels)}: give one label for each")
    try:
        config = Config.model_validate(checkpoint.config.model_dump() | {"labels": labels})
    except ValidationError as error:
        raise UserError(f"these labels cannot be used: {error}") from error
    return Checkpoint(checkpoint.folder, config, checkpoint.network)


def recorded_name(source: str) -> str:
    """Return a source's name in the training record: a URL, or the name of a local file or folder."""
    return source if is_remote(source) else Path(source).resolve().name
