"""The settings of a training process: threads, allocator, compilation and precision."""

import ctypes
import shutil
from contextlib import suppress

import torch

from models.architectures import Architecture
from models.errors import UserError
from models.machine import available_cpus
from models.training.distributed.group import local_processes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
KEPT, LARGEST = 1 << 30, 32 << 20
"""The most bytes that the process keeps, and the largest allocation in bytes that it keeps (glibc's maximum)."""


def prepare_process(seed: int) -> None:
    """Set the seed, the threads and the allocator of the process."""
    torch.manual_seed(seed)
    torch.set_num_threads(max(1, available_cpus() // local_processes()))
    keep_freed_memory()


def gains_by_compiling(architecture: Architecture, device: torch.device, mixed: bool) -> bool:
    """Return whether torch.compile is available and makes training faster.

    It makes training faster on the CPU, in float32, for small convolutions. Large ones take the same time, and compiled
    batch norm in bfloat16 is slower than torch's. On CUDA the steps are captured as graphs instead.

    Measured on an AMD EPYC (Zen 4), in images/s compiled and eager: imagenet_rnn_gate_18 at 112 pixels 96 and 106 (two
    cores); in bfloat16 on one core cifar10_rnn_gate_38 153 and 189 to 204, cifar10_resnet_38 277 and 269.
    """
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return device.type == "cpu" and compiler and architecture.stem == "cifar" and not mixed


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware. Otherwise half precision is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, because new pages cost page faults.

    A step of SkipNet-38 then has 512 page faults instead of 11,616 and takes 5 to 6 % less time (one core of an AMD
    EPYC, Zen 4).
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST)
        library.mallopt(TRIM_THRESHOLD, KEPT)


def choose_device(device: str) -> str:
    """Return the device to train on.

    Raises UserError if the option is cuda and torch finds no GPU.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise UserError("torch finds no GPU here: leave out --device cuda")
    return ("cuda" if found else "cpu") if device == "auto" else device
