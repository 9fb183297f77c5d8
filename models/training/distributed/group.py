"""The processes that train one network together, and what they exchange.

`torchrun` starts them and gives each its rank. Each computes its share of every batch. Without torchrun there is one
process, which exchanges nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from models.data.share import GLOBAL_BATCH, Share
from models.errors import UserError

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others. Meanwhile, one of them may decode a data set or write a checkpoint."""


class ProcessLost(UserError):
    """Another process of the run has ended or cannot be reached."""


def started_processes() -> int:
    """Return the number of processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Return the number of processes that torchrun has started on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def require_one_process(verb: str) -> None:
    """Raise UserError if torchrun has started several processes."""
    if started_processes() > 1:
        raise UserError(f"skipnet {verb} runs in one process: start it without torchrun")


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Connect the processes of the run inside the `with` statement.

    If ``device`` is cuda, each process has its own GPU.

    Raises UserError if this host has fewer GPUs than processes, and ProcessLost if another process cannot be reached.
    """
    if started_processes() == 1:
        yield
        return
    if device == "cuda":
        if local_processes() > torch.cuda.device_count():
            raise UserError(
                f"torch finds {torch.cuda.device_count()} GPUs for {local_processes()} processes: "
                f"set --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    exchange(dist.init_process_group, BACKENDS[device], timeout=TIMEOUT)
    yield
    # This is not called after an error, because the others may wait for this process until it has ended.
    dist.destroy_process_group()


def share() -> Share:
    """Return this process's share of each batch: its rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return Share(dist.get_rank(), dist.get_world_size())
    return GLOBAL_BATCH


def is_first() -> bool:
    """Return whether this process has rank 0. It writes the run's files and reports its progress."""
    return share().rank == 0


def exchange(collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a collective of `torch.distributed`.

    Raises ProcessLost if it fails.
    """
    try:
        collective(*arguments, **options)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ProcessLost(f"another process of the run has ended or cannot be reached ({reason})") from error


def add(values: Tensor) -> None:
    """Replace values by their sum over the processes."""
    exchange(dist.all_reduce, values)


def gather(values: Tensor) -> Tensor:
    """Return the values [...] of every process, as [size, ...]. All must have the same shape."""
    values = values.contiguous()[None]
    gathered = values.new_empty(share().size, *values.shape[1:])
    exchange(dist.all_gather_single, gathered, values)
    return gathered


def total(count: int) -> int:
    """Return the sum of a number over the processes."""
    return count if share().size == 1 else int(gather(torch.tensor(count)).sum())


def agree(seconds: float, number: int | None) -> tuple[float, int | None]:
    """Return the sum of ``seconds`` over the processes, and the signal number that any of them received."""
    if share().size == 1:
        return seconds, number
    everyone = gather(torch.tensor((seconds, number or 0), dtype=torch.float64))
    return float(everyone[:, 0].sum()), int(everyone[:, 1].max()) or None


def wait_for_all() -> None:
    """Wait until every process has called this function."""
    total(0)


def broadcast(content: bytes) -> bytes:
    """Return the bytes of the first process."""
    if share().size == 1:
        return content
    length = torch.tensor(len(content))
    exchange(dist.broadcast, length, 0)
    if not length:
        return b""
    values = torch.empty(int(length), dtype=torch.uint8)
    if is_first():
        values.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    exchange(dist.broadcast, values, 0)
    return values.numpy().tobytes()


def join_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the rows [N, ...] of all processes in the order of the processes. N may differ between them."""
    if share().size == 1:
        return rows
    counts = gather(torch.tensor(len(rows))).tolist()
    padded = np.zeros((max(counts), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    gathered = gather(torch.from_numpy(padded)).numpy()
    return np.concatenate([of_one[:count] for of_one, count in zip(gathered, counts, strict=True)])
