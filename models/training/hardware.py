"""What training takes of the processor that it runs on, and what that does well."""

import shutil

import torch

from models.architectures import Architecture
from models.machine import available_cpus
from models.training.memory import keep_freed_memory


def prepare_process(seed: int) -> None:
    """Set what a run takes of the process that it is in: seed, threads and memory."""
    torch.manual_seed(seed)
    torch.set_num_threads(available_cpus())
    keep_freed_memory()


def gains_by_compiling(architecture: Architecture, device: torch.device, mixed: bool) -> bool:
    """Whether torch.compile can be had and pays: not on the CPU where convolutions are large, which it leaves alone,
    and not there in bfloat16, where its batch norm is slower than torch's own; on CUDA steps are recorded instead.

    Measured on an AMD EPYC (Zen 4): imagenet_rnn_gate_18 at 112 pixels takes 96 images/s compiled and 106 as it is (two
    cores); in bfloat16, one core, cifar10_rnn_gate_38 153 and 189 to 204, cifar10_resnet_38 277 and 269.
    """
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return device.type == "cpu" and compiler and architecture.stem == "cifar" and not mixed


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16; where it has none, half precision is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
