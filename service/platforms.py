"""Settings that a hosting platform prescribes to the containers that it runs."""

import os
from collections.abc import Collection
from pathlib import Path

SAGEMAKER_PORT = 8080


def platform_settings(dialects: Collection[str], given: Collection[str]) -> dict[str, object]:
    """Return the settings that the platforms of ``dialects`` prescribe.

    Vertex AI sets a variable for each setting, which overrides ours. SageMaker requests port 8080. ``given`` are the
    settings of the user, which override this port. Raises ValueError for a variable that is not a port.
    """
    settings: dict[str, object] = {}
    if "sagemaker" in dialects and "port" not in given:
        settings["port"] = port_in("SAGEMAKER_BIND_TO_PORT") or SAGEMAKER_PORT
    if "vertex" in dialects and (port := port_in("AIP_HTTP_PORT")):
        settings["port"] = port
    if "vertex" in dialects and (artifacts := os.environ.get("AIP_STORAGE_URI")):
        settings["model_repository"] = Path(artifacts)
    return settings


def port_in(variable: str) -> int | None:
    """Return the port in an environment variable, or None if it is not set or empty.

    Raises ValueError.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16):
        raise ValueError(f"{variable} must be a port, not {text!r}")
    return int(text)
