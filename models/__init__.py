"""SkipNet's networks, engines and training, independent of HTTP."""

import os
from pathlib import Path

SHIPPED = Path(__file__).parent / "repository"
"""The model repository that comes with the code."""

# ONNX Runtime and datasets report usage to their makers by default. Both read these variables when they are imported,
# and only modules of this package import them.
for _variable, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("HF_UPDATE_DOWNLOAD_COUNTS", "0"),
):
    os.environ.setdefault(_variable, _value)
