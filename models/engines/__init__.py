"""Engines: what runs a checkpoint. ``load_engine`` is the one way in; importing it is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
) -> Engine:
    """Return an engine that runs ``checkpoint``.

    ``engine``: reference, torch, onnxruntime, native, persistent, cuda_graph, or auto for the one that is fastest
    here at batch 1. ``device``: cpu, cuda, cuda:N, or auto for CUDA where there is one. ``threads``: CPU threads;
    by default what the container may use. ``routing``: branch, mask, or auto for the faster at the traffic's
    routing. ``on_fallback`` is told which engine auto does without, and why. On CUDA, an engine is only returned
    after it answered a few images as the reference does.
    Raises EngineError, which says what to do, where that cannot be had.
    """
    from models.engines.selection import select

    return select(checkpoint, engine, device, threads, routing, on_fallback)
