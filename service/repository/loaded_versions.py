"""The versions of models that are loaded, and the choice of one for a request."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from service.errors import Code, ServiceError, not_ready
from service.repository.folder import Beside
from service.repository.loaded_model import LoadedModel
from service.repository.promotion import usual_version

log = logging.getLogger("skipnet.repository")


class LoadedVersions:
    """The versions in memory. Every method runs in the event loop.

    ``on_loaded`` is called with a model when new requests begin to use it. ``on_retired`` is called when its last
    request has ended. ``beside`` are versions that are loaded beside the usual one.
    """

    def __init__(
        self,
        on_loaded: Callable[[LoadedModel], None],
        on_retired: Callable[[LoadedModel], None],
        default: str | None,
        beside: Beside | None,
    ) -> None:
        self.default = default  # the model of requests that name none
        self.loaded: dict[str, dict[int, LoadedModel]] = {}  # by name and version
        self.loading: set[tuple[str, int]] = set()
        self.problems: dict[tuple[str, int], str] = {}  # why the last load of a version failed
        self.promoted: dict[str, int] = {}  # the promoted version of models that have one
        self.pinned: set[tuple[str, int]] = set()  # loaded by number: a newer version does not replace it
        self.beside: Beside = beside or {}
        self._on_loaded = on_loaded
        self._on_retired = on_retired

    def is_loaded(self, name: str, version: int) -> bool:
        return version in self.loaded.get(name, ())

    def usual(self, name: str) -> LoadedModel | None:
        """Return the loaded version for requests that name none: the promoted one, or the newest."""
        versions = self.loaded.get(name, {})
        promoted = self.promoted.get(name)
        history = [promoted] if promoted is not None and promoted in versions else []
        number = usual_version(history, list(versions), self.beside.get(name, ()))
        return None if number is None else versions[number]

    def resolve(self, name: str | None, version: int | None) -> LoadedModel:
        """Return the model for a request: by default the usual version of the default model.

        Raises ServiceError not_ready if it is being loaded or could not be loaded, else model_not_found.
        """
        wanted = name if name is not None else self.default
        if wanted is None:
            raise not_ready("no model is loaded yet; GET /health/ready says why")
        versions = self.loaded.get(wanted, {})
        if version is not None and version in versions:
            return versions[version]
        if version is None and (usual := self.usual(wanted)) is not None:
            return usual
        if any(wanted == loading and version in (None, number) for loading, number in self.loading):
            raise not_ready(f"{wanted} is being loaded; try again")
        if name is None and not versions:
            raise not_ready(
                f"the default model {wanted} is not loaded; GET /models says why if it is in the repository, and "
                f"POST /v2/repository/models/{wanted}/load loads it"
            )
        if any(wanted == failed and version in (None, number) for failed, number in self.problems):
            raise not_ready(f"{wanted} could not be loaded; GET /models says why")
        raise ServiceError(
            Code.MODEL_NOT_FOUND,
            f"no model {wanted!r}{'' if version is None else f' version {version}'} is served; "
            "GET /models lists the models that are, and those that could be loaded",
        )

    @contextmanager
    def lease(self, name: str | None, version: int | None) -> Iterator[LoadedModel]:
        """Yield the model for a request. It is not closed before the `with` block ends.

        Raises as `resolve` does.
        """
        model = self.resolve(name, version)
        model.leases += 1
        try:
            yield model
        finally:
            model.leases -= 1
            if model.retired and not model.leases:
                self._on_retired(model)

    @property
    def failed(self) -> int:
        """The number of models whose newest version could not be loaded. An older version is served, or none."""
        return len({name for name, version in self.problems if version >= max(self.loaded.get(name, ()), default=-1)})

    def forget_problems(self, found: Mapping[str, list[int]], names: Collection[str]) -> None:
        """Remove the problems of versions of ``names`` that are not in ``found``, those in the folder."""
        for name, version in [key for key in self.problems if key[0] in names]:
            if version not in found.get(name, ()):
                del self.problems[name, version]

    def note_promotion(self, name: str, history: Sequence[int]) -> None:
        """Record the promoted version of a model."""
        self.promoted.pop(name, None)
        if history:
            self.promoted[name] = history[-1]

    def put(self, model: LoadedModel) -> None:
        """Use a model for new requests. Requests with an older version keep it."""
        versions = self.loaded.setdefault(model.name, {})
        replaced = versions.pop(model.version, None)
        versions[model.version] = model
        self._on_loaded(model)
        if replaced is not None:
            self._retire(replaced)
        if (model.name, model.version) not in self.pinned:
            self.retire_others(model)

    def retire_others(self, model: LoadedModel) -> None:
        """Retire the other versions of a model, except those loaded by number and those of canaries and shadows."""
        versions, beside = self.loaded[model.name], self.beside.get(model.name, ())
        # If one of them is newer, it was rolled back or removed from the folder.
        for number in [each for each in versions if each != model.version]:
            if (model.name, number) not in self.pinned and number not in beside:
                self._retire(versions.pop(number))

    def remove(self, model: LoadedModel) -> None:
        """Unload one version."""
        versions = self.loaded[model.name]
        del versions[model.version]
        self.pinned.discard((model.name, model.version))
        self._retire(model)
        log.info("%s is no longer served", model)
        if not versions:
            del self.loaded[model.name]

    def _retire(self, model: LoadedModel) -> None:
        model.retired = True
        if not model.leases:
            self._on_retired(model)
