"""Print the packages of pyproject.toml for the image, so that its layers change only with them.

python requirements.py torch    PyTorch alone, by far the largest layer
python requirements.py          all others, also of the extras training, grpc, remote, and of cuda if PyTorch has CUDA
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
        # The build for the CPU alone has a tenth of the size.
        others = [line for line in others if not line.startswith("onnxruntime")] + ["onnxruntime>=1.22"]
    else:
        others += extras["cuda"]
    print(*others, *extras["training"], *extras["grpc"], *extras["remote"], sep="\n")


if __name__ == "__main__":
    main()
