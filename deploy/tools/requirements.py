"""Prints the packages that pyproject.toml asks for, for the image: its layers change only when they do.

python requirements.py torch    the network library alone, by far the largest layer
python requirements.py          all the others, with the training extra's and, where torch has CUDA, the cuda extra's
"""

import sys
import tomllib
from importlib import metadata
from pathlib import Path


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    torch = [line for line in project["dependencies"] if line.startswith("torch==")]
    if sys.argv[1:] == ["torch"]:
        print(*torch, sep="\n")
        return
    extras = project["optional-dependencies"]
    others = [line for line in project["dependencies"] if line not in torch]
    if "+cpu" in metadata.version("torch"):
        # The build for the CPU alone, a tenth of the size, in place of the one that can do both.
        others = [line for line in others if not line.startswith("onnxruntime")] + ["onnxruntime>=1.22"]
    else:
        others += extras["cuda"]
    print(*others, *extras["training"], sep="\n")


if __name__ == "__main__":
    main()
