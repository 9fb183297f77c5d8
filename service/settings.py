"""Every option of `skipnet serve`: a flag ``--name`` and an environment variable ``SKIPNET_NAME`` each."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from models import SHIPPED

EngineName = Literal["auto", "native", "onnxruntime", "persistent", "cuda_graph", "torch", "reference"]
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Options(BaseSettings):
    """What every verb of the command line shares: flags in kebab case, variables that begin with SKIPNET_."""

    model_config = SettingsConfigDict(
        env_prefix="SKIPNET_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        # A model's settings are named `model…`; pydantic reserves that prefix for no good of ours.
        protected_namespaces=(),
    )


class EngineOptions(Options):
    """Which checkpoint runs, and in what."""

    model_repository: Path = Field(default=SHIPPED, description="folder of <model>/<version>/ checkpoints")
    engine: EngineName = Field(default="auto", description="what runs the network; auto takes the fastest that can")
    device: DeviceName = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    routing: Literal["auto", "branch", "mask"] = Field(
        default="auto",
        description="leave skipped blocks out, run them in vain, or what is faster at this traffic",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the engine; default: what the container may use"
    )


class Settings(EngineOptions):
    """Serve the models of a repository over HTTP."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 is every one")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes that serve together, each with an engine, a queue and limits of its own, and its part "
        "of the CPUs; 1 for each GPU is best",
    )
    default_model: str | None = Field(
        default=None,
        description="model of requests that name none; default: the first by name at start, those without gates last",
    )

    watch_interval: Seconds = Field(
        default=0, description="seconds between looks for new versions in the repository; 0: load by request only"
    )

    max_batch_size: int = Field(default=32, ge=1, le=1024, description="images that run together at most")
    batch_delay: Seconds = Field(
        default=0,
        description="seconds to wait for a fuller batch; 0: a batch is what queued while the engine was busy",
    )
    dense_sample_interval: Seconds = Field(
        default=10,
        description="seconds between batches that are also run dense, to know what skipping saves; 0: the warm-up's "
        "clock. At most 2 % of the engine's time",
    )
    max_queue_size: int = Field(default=256, ge=1, description="images admitted and not yet answered; more get 429")
    request_timeout: float = Field(
        default=30, gt=0, le=3600, description="seconds until 504; the header X-Request-Timeout can lower it"
    )

    max_body_size: int = Field(default=16 << 20, ge=1, description="bytes of one request body; more get 413")
    max_bodies_size: int = Field(default=256 << 20, ge=1, description="bytes of all request bodies held at once")
    max_image_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=80_000_000,
        description="width x height of an image, checked before it is decoded",
    )
    max_decode_memory: int = Field(
        default=512 << 20,
        ge=1 << 20,
        description="bytes that decoding may take, all images at once; a pixel counts as 10 to 24",
    )
    decode_threads: int | None = Field(default=None, ge=1, description="default: one per CPU the container may use")

    api_keys: list[str] = Field(
        default=[], repr=False, description="keys that may classify, as a JSON list; without any, everybody may"
    )
    api_keys_file: Path | None = Field(default=None, description="more of them, one a line")
    management_keys: list[str] = Field(
        default=[], repr=False, description="keys that may load and unload models; without any, those that classify"
    )
    management_keys_file: Path | None = Field(default=None, description="more of them, one a line")
    cors_origins: list[str] = Field(
        default=[], description='origins whose pages may call from a browser, as a JSON list; ["*"] is every one'
    )

    drain_pause: Seconds = Field(
        default=0,
        description="seconds to keep serving, not ready, after SIGTERM, until load balancers have noticed",
    )
    drain_timeout: Seconds = Field(
        default=30, description="seconds that what was admitted may take to finish after that"
    )
    keep_alive: int = Field(
        default=75, ge=1, description="seconds an idle connection stays open; more than the balancer's"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe line to write"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="one line per request either way")
    tracing: bool = Field(
        default=False,
        description="send an OpenTelemetry span of each request to classify, as the OTEL_… variables say; needs "
        "the extra skipnet-serve[tracing]",
    )


def misspelt(variables: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield variables that are no option, and the option of `skipnet serve` that each looks like."""
    options = [f"SKIPNET_{name.upper()}" for name in Settings.model_fields]
    for variable in sorted(set(variables) - set(options)):
        if variable.startswith("SKIPNET_"):
            for option in get_close_matches(variable, options, 1, 0.9):
                yield variable, option
