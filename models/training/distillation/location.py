"""The files of teachers, and their names in a checkpoint's training record."""

from pathlib import Path

from safetensors import safe_open

from models.persistence.legacy_names import TEACHERS as LEGACY_TEACHERS
from models.training.distillation.network import TEACHERS

TEACHER_FILE, LOGITS_FILE = "teacher.safetensors", "teacher_logits.safetensors"
LEGACY_FILES = {TEACHER_FILE: "network.safetensors", LOGITS_FILE: "answers.safetensors"}
LOGITS = "-logits"


def parse_teacher(name: str) -> tuple[str, str] | None:
    """Return the teacher network and the file for ``name`` in a stage's record, or None for a checkpoint.

    "large" is the network used online. "large-logits" are the logits that it computed once.
    """
    network = name.removesuffix(LOGITS)
    if network not in TEACHERS:
        return None
    return network, TEACHER_FILE if name == network else LOGITS_FILE


def teacher_name(file: Path) -> str:
    """Return the name in a stage's record of the teacher, or of its logits, in a file."""
    with safe_open(file, "pt") as opened:
        # The earliest files do not name their network, because only one existed.
        network: str = (opened.metadata() or {}).get("network", "small")
    network = LEGACY_TEACHERS.get(network, network)
    return network if is_network(file) else f"{network}{LOGITS}"


def is_network(file: Path) -> bool:
    """Return whether a file is named like an online teacher's. Other files hold a teacher's logits."""
    return file.name in (TEACHER_FILE, LEGACY_FILES[TEACHER_FILE])


def teacher_folder(runs: Path, dataset: str, network: str) -> Path:
    """Return the folder in ``runs`` of a teacher's training, or that of an earlier version if it exists."""
    folder = runs / f"{dataset}_teacher_{network}"
    legacy = [runs / f"{dataset}_{old}" for old, new in LEGACY_TEACHERS.items() if new == network]
    return next((each for each in legacy if each.exists() and not folder.exists()), folder)


def teacher_file(folder: Path, name: str) -> Path:
    """Return ``TEACHER_FILE`` or ``LOGITS_FILE`` in a folder, or its earlier name if only that exists."""
    file, legacy = folder / name, folder / LEGACY_FILES[name]
    return legacy if legacy.exists() and not file.exists() else file
