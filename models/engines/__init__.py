"""Run checkpoints. ``load_engine`` returns an engine. Importing this package is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from models.checkpoint import Checkpoint
    from models.engines.protocol import Engine
    from models.engines.selection import OnFallback


def load_engine(
    checkpoint: Checkpoint,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    routing: str = "auto",
    on_fallback: OnFallback | None = None,
    cache: Path | None = None,
) -> Engine:
    """Return an engine that runs ``checkpoint``.

    ``engine``: reference, torch, onnxruntime, native, native_int16, persistent, cuda_graph, or auto for the fastest
    one on this machine at batch 1. ``device``: cpu, cuda, cuda:N, or auto for CUDA if there is a GPU. ``threads``: CPU
    threads, by default all that the container may use. ``routing``: branch, mask, or auto for the faster one under the
    current traffic. ``on_fallback`` is called with the name and the reason whenever auto falls back from an engine.
    An engine is returned only after its output matched the reference engine on a few images. ``cache`` is a folder in
    which auto keeps its choice: on a CPU it neither compares nor measures again what has not changed since.
    Raises EngineError, which says what to do, if there is no such engine.
    """
    from models.engines.selection import select

    return select(checkpoint, engine, device, threads, routing, on_fallback, cache)
