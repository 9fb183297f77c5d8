"""The share of each batch that a process of a training run takes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The share of process ``rank`` of ``size`` processes. By default it is the global batch.

    An image and its mirror image in the batch (the first and the last, for instance) belong to the same process, since
    `models.data.augmentation.mixup` blends them. Neighbours belong to different processes, so that all processes have
    the same number of images of each operating point.
    """

    rank: int = 0
    size: int = 1

    def positions(self, count: int, repeats: int = 1) -> Tensor:
        """Return the positions int64 [repeats * count / size], ascending, of the share in a batch of ``count`` images.

        A batch of several processes is a multiple of twice their number. With ``repeats``, the batch is repeated.
        """
        if self.size == 1:
            return torch.arange(repeats * count)
        first = torch.arange(self.rank, count // 2, self.size)
        once = torch.cat((first, (count - 1 - first).flip(0)))
        return torch.cat([once + repeat * count for repeat in range(repeats)])

    def take(self, rows: Tensor, repeats: int = 1) -> Tensor:
        """Return the rows of this share from rows [repeats * N, ...] of the global batch."""
        if self.size == 1:
            return rows
        return rows[self.positions(len(rows) // repeats, repeats).to(rows.device)]


GLOBAL_BATCH = Share()
