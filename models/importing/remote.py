"""Copy a network from a model hub (huggingface_hub), an object store or a web server (fsspec and obstore)."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from models.errors import UserError, needs_extra
from models.remote.files import store_options

HUB = "hf"
OBJECT_STORES = ("s3://", "gs://")
SCHEMES = (HUB, "s3", "gs", "https", "http")
CONFIGS = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of a weights file in a folder, the preferred name first."""
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")
HUB_NAME = re.compile(r"hf://([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?/?")


def is_remote(source: str) -> bool:
    """Return whether ``source`` is a URL that `local_copy` can read."""
    return "://" in source and urlsplit(source).scheme in SCHEMES


def public_name(source: str) -> str:
    """Return a URL without its user, password and query, which may be secret."""
    parts = urlsplit(source)
    host = parts.netloc if parts.scheme == HUB else parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


@contextmanager
def local_copy(source: str) -> Iterator[Path]:
    """Yield a local copy of a weights file, or of a folder with the files of a network.

    ``source`` is hf://ORG/NAME[@REVISION], or a file or folder at s3://, gs://, https:// or http://. The hub's library
    stores files in its own cache. Other copies are deleted afterwards. Raises UserError if the extra "remote" is
    missing, or the source cannot be read.
    """
    with TemporaryDirectory(prefix="skipnet-import-") as folder:
        yield fetch(source, Path(folder))


def fetch(source: str, folder: Path) -> Path:
    """Copy ``source`` into ``folder`` or into the hub's cache, and return the path of the copy."""
    with needs_extra("remote", f"reading {public_name(source)}"):
        try:
            return fetch_from_hub(source) if source.startswith(f"{HUB}://") else fetch_by_url(source, folder)
        except (UserError, ImportError):
            raise
        except Exception as error:  # Each store's library has its own exception types.
            name, reason = public_name(source), type(error).__name__
            if name == source:  # Otherwise the message could contain a secret.
                reason = next(iter(str(error).splitlines()), "") or reason
            raise UserError(f"{name} cannot be read ({reason}): check the address and your access") from error


def fetch_from_hub(source: str) -> Path:
    """Return the folder in the hub's cache that holds a network's files."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found = HUB_NAME.fullmatch(source)
    if found is None:
        raise UserError(f"{source} names no network of the hub: write hf://ORG/NAME or hf://ORG/NAME@REVISION")

    def copy(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(found[1], name, revision=found[2]))
        except LocalEntryNotFoundError:  # The hub cannot be reached.
            raise
        except EntryNotFoundError:
            return None

    return copy_network(copy, source)


def fetch_by_url(source: str, folder: Path) -> Path:
    """Copy a file, or the files of a network in a folder, and return the copy.

    A query, such as a signature, is valid for one file only. Credentials of object stores come from the variables AWS_…
    and GOOGLE_….
    """
    from fsspec.core import url_to_fs
    from obstore.fsspec import register

    # fsspec's own libraries for object stores need older versions of packages than our other dependencies do.
    register(["s3", "gs"])
    store, path = url_to_fs(source, **(store_options() if source.startswith(OBJECT_STORES) else {}))
    name = Path(urlsplit(source).path).name
    if name not in WEIGHTS and name.endswith(SUFFIXES):
        store.get_file(path, str(folder / name))
        return folder / name
    parent = path.removesuffix(name) if name in WEIGHTS else path

    def copy(name: str) -> Path | None:
        there = f"{parent.rstrip('/')}/{name}"
        if not store.exists(there):
            return None
        store.get_file(there, str(folder / name))
        return folder / name

    return copy_network(copy, source)


def copy_network(copy: Callable[[str], Path | None], source: str) -> Path:
    """Copy a network's configuration and weights with ``copy``, which returns None for a missing file.

    Returns the folder with the copies. Raises UserError if there are no weights.
    """
    for name in CONFIGS:
        copy(name)
    weights = next((file for name in WEIGHTS if (file := copy(name)) is not None), None)
    if weights is None:
        raise UserError(f"{public_name(source)} holds no {' or '.join(WEIGHTS)}: name the weights file itself")
    return weights.parent
