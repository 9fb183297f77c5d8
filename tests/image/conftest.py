"""Build and run the image without a container engine, by buildah in chroots.

The base image is made by debootstrap. It has the Debian release and the Python version of the official Python image.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("buildah", "debootstrap")
ISOLATION = ("--isolation", "chroot")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def run(*command: object) -> str:
    """Run a command and return its standard output. Its standard error goes to that of the test."""
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@dataclass(frozen=True)
class Image:
    """The built image in its own storage."""

    storage: tuple[str, ...]
    name: str

    def buildah(self, verb: str, *arguments: object) -> str:
        return run("buildah", *self.storage, verb, *arguments)

    def start(self, command: list[str], volumes: dict[Path, str], log: Path, **env: str) -> subprocess.Popen[bytes]:
        """Start a command as the image's user in a new container."""
        container = self.buildah("from", "--pull-never", self.name)
        options = [f"--volume={host}:{inside}" for host, inside in volumes.items()]
        options += [f"--env={name}={value}" for name, value in env.items()]
        with log.open("wb") as file:
            return subprocess.Popen(
                ["buildah", *self.storage, "run", *ISOLATION, *options, container, "--", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.fail(f"building the image needs root and Debian's packages {' '.join(PROGRAMS)}")
    folder = tmp_path_factory.mktemp("image")
    storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"), "--storage-driver", "vfs")
    made = Image(storage, "localhost/skipnet")
    build_base(made, folder / "base")
    mounts = [f"--volume={path}:{path}:ro" for path in pip_folders()]
    made.buildah("bud", *ISOLATION, "--pull-never", *mounts, "--tag", made.name, ROOT)
    yield made
    shutil.rmtree(folder)


def build_base(image: Image, folder: Path) -> None:
    """Tag a minimal Debian with Python as the base image of the Dockerfile."""
    [name] = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    release = name.rpartition("-")[2]
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", release, folder)
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    shutil.copyfile(CERTIFICATES, folder / CERTIFICATES.relative_to("/"))
    (folder / "etc/pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip_settings()))
    container = image.buildah("from", "scratch")
    image.buildah("add", "--quiet", container, folder, "/")
    image.buildah("commit", "--quiet", "--rm", container, name)
    shutil.rmtree(folder)


def pip_settings() -> list[tuple[str, str]]:
    """Return the package sources of pip on this machine, for use in the build."""
    listed = run(sys.executable, "-m", "pip", "config", "list")
    settings = re.findall(r"^(?:global|:env:)\.(index-url|extra-index-url|find-links)='(.*)'$", listed, re.MULTILINE)
    return list({key: value.replace("\\n", " ") for key, value in settings}.items())


def pip_folders() -> set[Path]:
    """Return the local folders among pip's package sources, which the build must mount."""
    values = [value for _, value in pip_settings()]
    indexes = {Path(found).parent for value in values for found in re.findall(r"file://(/\S+)", value)}
    links = {Path(found) for value in values for found in re.findall(r"(?<!\S)(/\S+)", value)}
    return {folder for folder in indexes | links if folder.is_dir()}
