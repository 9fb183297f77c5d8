"""GET /models: the versions in the repository and those that are loaded."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.container import Container
from service.http.routes.dependencies import ContainerHere
from service.inference.result import ModelIdentity
from service.repository.repository import Entry, State

router = APIRouter(tags=["models"])


class Budget(BaseModel):
    """A point of the accuracy-compute curve, measured on validation images."""

    mac_share: float = Field(description="mean executed MACs over dense MACs")
    accuracy: float = Field(description="top-1, 0..1")


class ServedVersion(ModelIdentity):
    """A version that is loaded."""

    architecture: str
    classes: int
    labels: list[str]
    input: tuple[int, int, int] = Field(description="channels, height, width")
    execute_threshold: float | tuple[float, ...] = Field(
        description="for a cascade: the execute thresholds of its stages, then its margins"
    )
    mode: str = Field(
        description="of the last batch; branch: skipped blocks not computed, mask: computed and discarded"
    )
    blocks: int
    dense_macs: int
    accuracy: float | None = Field(None, description="top-1 accuracy, 0..1, if it was evaluated")
    budgets: list[Budget] = Field(
        description="the accuracy-compute curve, from which compute_budget chooses, by rising MACs"
    )


class RepositoryEntry(BaseModel):
    name: str
    version: int
    state: State
    reason: str = Field("", description="why it is not served, or why a later load of it failed")
    default: bool = Field(description="whether it is the default model of requests")
    promoted: bool | None = Field(
        None, description="true if it was promoted; newer versions are not served until they are promoted"
    )
    served: ServedVersion | None = None


class Models(BaseModel):
    models: list[RepositoryEntry]


@router.get("/models", summary="List the models", response_model=Models, response_model_exclude_none=True)
async def models(container: ContainerHere) -> Models:
    """List every version in the repository."""
    return Models(models=[describe(container, entry) for entry in await container.repository.index()])


def describe(container: Container, entry: Entry) -> RepositoryEntry:
    repository = container.repository
    loaded = repository.loaded.get(entry.name, {}).get(entry.version)
    listed = RepositoryEntry(
        name=entry.name,
        version=entry.version,
        state=entry.state,
        reason=entry.reason,
        default=loaded is not None and entry.name == repository.default and loaded is repository.usual(entry.name),
        promoted=repository.promoted.get(entry.name) == entry.version or None,
    )
    if loaded is not None:
        listed.served = ServedVersion(
            name=loaded.name,
            version=loaded.version,
            engine=loaded.engine.name,
            device=loaded.device,
            architecture=loaded.architecture,
            classes=len(loaded.labels),
            labels=loaded.labels,
            input=loaded.shape,
            execute_threshold=loaded.threshold,
            mode=loaded.mode,
            blocks=loaded.blocks,
            dense_macs=loaded.dense_macs,
            accuracy=loaded.accuracy,
            budgets=[Budget(mac_share=share, accuracy=accuracy) for share, accuracy in loaded.curve],
        )
    return listed
