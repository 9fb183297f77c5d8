"""Read the state dict in a weights file without running code: files of torch.save, and safetensors."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.errors import UserError

TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
"""The first bytes of a file of torch.save: a zip file, or a pickle in old versions."""
SAFETENSORS_HEADER = 8
"""The position of the JSON header in a safetensors file."""
STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")
"""The keys under which training scripts save the state dict."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""The prefixes that DataParallel, torch.compile and wrapper modules add to each name."""


def read_weights(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict in a file without prefixes, and the other values in the file.

    Raises UserError if the file cannot be read without running code, or has no state dict.
    """
    saved = read_file(source)
    others: dict[str, Any] = {}
    while not is_state(saved):
        wrapper = next((key for key in STATE_KEYS if isinstance(saved.get(key), dict)), None)
        if wrapper is None:
            raise UserError(
                f"{source} holds no weights: a state dict is expected, or a dict that holds one as "
                f"{', '.join(map(repr, STATE_KEYS))}; it holds {describe_content(saved)}"
            )
        others |= {key: value for key, value in saved.items() if key != wrapper}
        saved = saved[wrapper]
    return {strip_prefixes(key): value for key, value in saved.items()}, others


def is_state(saved: dict[str, Any]) -> bool:
    """Return whether a dict is a state dict: names of tensors only."""
    return bool(saved) and all(isinstance(value, Tensor) for value in saved.values())


def describe_content(saved: dict[str, Any]) -> str:
    """Return the first keys of a dict and the types of their values."""
    described = [f"{key!r} ({type(value).__name__})" for key, value in list(saved.items())[:4]]
    return ", ".join(described) + (", …" if len(saved) > 4 else "") if described else "nothing"


def strip_prefixes(key: str) -> str:
    """Return a key without the prefixes of wrappers."""
    while prefix := next((each for each in PREFIXES if key.startswith(each)), None):
        key = key.removeprefix(prefix)
    return key


def read_file(source: Path) -> dict[str, Any]:
    """Return the content of a weights file. Only tensors and plain values are unpickled."""
    try:
        with source.open("rb") as file:
            start = file.read(SAFETENSORS_HEADER + 1)
        if start[SAFETENSORS_HEADER:] == b"{":
            return dict(load_file(source))
        if not start.startswith(TORCH_MAGIC):
            raise UserError(f"{source} is neither a file of torch.save nor a safetensors file: choose one of these")
        saved = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{source} is a damaged safetensors file ({error}): copy it again") from error
    # torch's message is left out, because it advises to load without weights_only.
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{source} is damaged, or was not written by torch.save: copy it again") from error
        raise UserError(
            f"{source} was not loaded: it holds an object that could run code, {found[1]}. Save its state_dict alone, "
            "with torch.save or as safetensors, on a machine where you trust the file, and import that"
        ) from error
    if not isinstance(saved, dict):
        raise UserError(f"{source} holds a {type(saved).__name__}: a state dict is expected. Save the state_dict alone")
    return saved
