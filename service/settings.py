"""The options of `skipnet serve`: each is a flag ``--name`` and an environment variable ``SKIPNET_NAME``."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models import SHIPPED
from service.platforms import platform_settings

EngineName = Literal["auto", "native", "native_int16", "onnxruntime", "persistent", "cuda_graph", "torch", "reference"]
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
DeviceNames = Annotated[str, Field(pattern=r"^(auto|all|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$")]
Dialect = Literal["huggingface", "vertex", "sagemaker"]
Canary = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}=\d{1,18}:(0(\.\d+)?|1(\.0+)?)$")]
Shadow = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}=(\d{1,18}|dense):(0(\.\d+)?|1(\.0+)?)$")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Options(BaseSettings):
    """Base of every command's options: flags in kebab case, environment variables with the prefix SKIPNET_."""

    model_config = SettingsConfigDict(
        env_prefix="SKIPNET_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        # Pydantic reserves the prefix `model_`, which some settings have.
        protected_namespaces=(),
    )


class EngineOptions(Options):
    """Which checkpoint runs, and on which engine."""

    model_repository: Path = Field(default=SHIPPED, description="folder of checkpoints: <model>/<version>/")
    engine: EngineName = Field(default="auto", description="engine that runs the network; auto: the fastest available")
    device: DeviceName = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    routing: Literal["auto", "branch", "mask"] = Field(
        default="auto",
        description="skip blocks (branch), compute and discard them (mask), or pick the faster (auto)",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the engine; default: one per CPU of the container"
    )


def split_at_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(EngineOptions):
    """Serve the models of a repository over HTTP."""

    device: DeviceNames = Field(
        default="auto",
        description="auto, cpu, cuda, cuda:N, several with commas, or all GPUs: an engine for each behind one queue",
    )
    model_repository: Path = Field(
        default=SHIPPED,
        description="folder of checkpoints: <model>/<version>/; or s3://BUCKET/PATH, gs://BUCKET/PATH, hf://ORG/NAME, "
        "which need the extra remote: pip install -e '.[remote]'",
    )
    model_cache: Path | None = Field(
        default=None, description="folder for the copy of a remote model repository; default: ~/.cache/skipnet"
    )

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0: a free one")
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port of the Open Inference Protocol over gRPC; default: no gRPC; needs the extra "
        "grpc: pip install -e '.[grpc]'",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="path under which a proxy serves this, such as /skipnet; see docs/proxies.md",
    )
    dialects: Annotated[list[Dialect], NoDecode, BeforeValidator(split_at_commas)] = Field(
        default=[],
        description="shapes of other services to serve too, separated by commas: huggingface, vertex, sagemaker; see "
        "docs/clients.md",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes on one port, each with its own engine, queue, limits and share of the CPUs; on GPUs "
        "use 1 and --device all",
    )
    default_model: str | None = Field(
        default=None,
        description="model of requests that name none; default: the first by name, models without gates last",
    )

    canary: Annotated[list[Canary], NoDecode, BeforeValidator(split_at_commas)] = Field(
        default=[],
        description="versions that serve a share, 0..1, of the requests that name none, as MODEL=VERSION:SHARE with "
        "commas between them; see docs/rollout.md",
    )
    canary_header: str = Field(
        default="X-Client-ID",
        pattern=r"^[A-Za-z0-9-]+$",
        description="request header whose value chooses between a canary and the usual version, so that a client "
        "always gets the same; without it, the choice is random",
    )
    shadow: Annotated[list[Shadow], NoDecode, BeforeValidator(split_at_commas)] = Field(
        default=[],
        description="versions that classify a sample of the images again when the engine is idle, for comparison, as "
        "MODEL=VERSION:SHARE, or MODEL=dense:SHARE for every block; see docs/rollout.md",
    )

    watch_interval: Seconds = Field(
        default=0, description="seconds between checks for new versions; 0: load new versions on request only"
    )

    max_batch_size: int = Field(default=32, ge=1, le=1024, description="most images in a batch")
    batch_delay: Seconds = Field(
        default=0,
        description="seconds that an image may wait for a fuller batch; 0: a batch is what queued while the engine ran",
    )
    dense_sample_interval: Seconds = Field(
        default=10,
        description="seconds between batches that also run dense, to measure what skipping saves, in at most 2 % of "
        "the engine's time; 0: measure at the warm-up only",
    )
    max_queue_size: int = Field(default=256, ge=1, description="most images in progress; requests beyond get 429")
    request_timeout: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="seconds until 504; a request's X-Request-Timeout can shorten it",
    )

    degrade_to: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="least share of an image's usual MACs under load, before requests are refused; "
        "default: routes never change; see docs/degradation.md",
    )
    degrade_loss: float = Field(
        default=0.02, ge=0, le=1, description="largest loss of expected accuracy, 0..1, of degraded images"
    )

    max_body_size: int = Field(default=16 << 20, ge=1, description="most bytes of a request body; larger ones get 413")
    max_bodies_size: int = Field(
        default=256 << 20, ge=1, description="most bytes of all bodies in memory; others get 429"
    )
    max_image_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=80_000_000,
        description="most pixels of an image (width x height), checked before decoding; larger ones get 413",
    )
    max_decode_memory: int = Field(
        default=512 << 20,
        ge=1 << 20,
        description="most bytes that all images being decoded may take, at 10 to 24 bytes a pixel",
    )
    decode_threads: int | None = Field(default=None, ge=1, description="default: one per CPU of the container")

    api_keys: list[str] = Field(
        default=[], repr=False, description="keys that may classify, as a JSON list; default: no key is needed"
    )
    api_keys_file: Path | None = Field(default=None, description="file of more keys, one a line; # begins a comment")
    management_keys: list[str] = Field(
        default=[],
        repr=False,
        description="keys that may manage models, as a JSON list; default: those that classify",
    )
    management_keys_file: Path | None = Field(
        default=None, description="file of more keys, one a line; # begins a comment"
    )
    cors_origins: list[str] = Field(
        default=[], description='origins whose pages may call the service from a browser, as a JSON list; ["*"]: all'
    )

    drain_pause: Seconds = Field(
        default=0,
        description="seconds after SIGTERM to keep serving while /health/ready fails, so that balancers notice",
    )
    drain_timeout: Seconds = Field(
        default=30, description="seconds after the drain pause for admitted requests to finish"
    )
    keep_alive: int = Field(
        default=75, ge=1, description="seconds that an idle connection stays open; set it longer than the balancer's"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level to write"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="format of the log lines")
    tracing: bool = Field(
        default=False,
        description="send an OpenTelemetry span of each request to the collector that the OTEL_… variables name; "
        "needs the extra tracing: pip install -e '.[tracing]'",
    )

    @model_validator(mode="after")
    def _as_the_platform_says(self) -> Self:
        for name, value in platform_settings(self.dialects, self.model_fields_set).items():
            setattr(self, name, value)
        return self


def misspelt(variables: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield unknown SKIPNET_ variables, each with the most similar option of `skipnet serve`."""
    options = [f"SKIPNET_{name.upper()}" for name in Settings.model_fields]
    for variable in sorted(set(variables) - set(options)):
        if variable.startswith("SKIPNET_"):
            for option in get_close_matches(variable, options, 1, 0.9):
                yield variable, option
