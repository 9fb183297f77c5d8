"""Batch norm with the statistics of a global batch, of which each process has a share.

`torch.nn.SyncBatchNorm` does the same, but only on GPUs, and not for a process without images. Here a process can have
no image, because all images that execute a block may belong to other processes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from models.training.distributed.group import add, gather, share


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make every batch norm in a module use the statistics of all processes. Its weights stay the same tensors."""
    if share().size == 1:
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SynchronisedBatchNorm):
                setattr(parent, name, SynchronisedBatchNorm.of(child))


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose batch statistics in training are those of all processes. A process may have no images."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SynchronisedBatchNorm":
        """Return a batch norm that shares its weights and running statistics with another one."""
        made = cls(norm.num_features, norm.eps, norm.momentum)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise feature maps [N, C, H, W]. In training, also update the running statistics."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = batch_statistics(x.detach(), self.weight.dtype)
        self.update(mean, variance, count)
        normalised: Tensor = Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)  # type: ignore[no-untyped-call]
        return normalised

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # Without a momentum, torch computes the plain mean over all batches.
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1), momentum)


def batch_statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and count [] of the values of each channel in all processes.

    ``x`` is [N, C, H, W]; N may be 0 in some processes. The variances are combined by the deviations of the means
    (Chan et al. 1979), since sums of squares would cancel.
    """
    channels = x.shape[1]
    own = torch.zeros(2 * channels + 1, device=x.device, dtype=dtype)
    if len(x):
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        own[:channels], own[channels:-1], own[-1] = mean, variance, x.numel() / channels
    means, variances, counts = torch.split(gather(own), [channels, channels, 1], dim=1)
    count = counts.sum()
    shares = counts / count
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(0), count


class Normalise(torch.autograd.Function):
    """Batch norm with given statistics, which depend on the input in every process."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        context.save_for_backward(x, weight, mean, variance, count)
        context.eps = eps
        return batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return this process's part of the gradients of weight and bias: `sum_gradients` adds the others."""
        x, weight, mean, variance, count = context.saved_tensors
        gradient = gradients[0]
        direct, of_weight, of_bias = gradient, torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):
            # With the statistics as constants.
            direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, context.eps, [True, True, True]
            )
        sums = torch.stack((of_weight, of_bias))
        add(sums)
        # Through the statistics, this subtracts what a kernel with the batch's statistics subtracts (Ioffe and Szegedy
        # 2015).
        inverse = torch.rsqrt(variance + context.eps)
        slope = weight * inverse**2 * sums[0] / count
        offset = weight * inverse * sums[1] / count - slope * mean
        shape = (1, -1, 1, 1)
        of_x = (direct - (offset.view(shape) + slope.view(shape) * x)).to(x.dtype)
        return of_x, of_weight, of_bias, None, None, None, None
