"""Shares of a model's requests or images for another version: the settings --canary and --shadow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.errors import UserError

DENSE = "dense"
"""It replaces a version number: the same version with every block executed."""


@dataclass(frozen=True)
class Share:
    """A share, 0..1, for a version; ``version`` None stands for DENSE."""

    version: int | None
    share: float

    @property
    def label(self) -> str:
        """The version as text."""
        return DENSE if self.version is None else str(self.version)


def parse_shares(texts: Iterable[str], option: str) -> dict[str, Share]:
    """Return the share of each model from texts like ``model=7:0.05``, whose form `Settings` has checked.

    Raises UserError if a model occurs twice.
    """
    shares: dict[str, Share] = {}
    for text in texts:
        model, _, rest = text.partition("=")
        version, _, share = rest.partition(":")
        if model in shares:
            raise UserError(f"{option} names the model {model} twice; leave one out")
        shares[model] = Share(None if version == DENSE else int(version), float(share))
    return shares


def versions_beside(*settings: Mapping[str, Share]) -> dict[str, set[int]]:
    """Return the versions of each model that have to be loaded beside the usual one."""
    versions: dict[str, set[int]] = {}
    for shares in settings:
        for model, share in shares.items():
            if share.version is not None:
                versions.setdefault(model, set()).add(share.version)
    return versions
