"""Index the images of feature maps in the channels-last layout, in which an image is contiguous in memory."""

from torch import Tensor


def last_channels(x: Tensor) -> Tensor:
    """Return a feature map [N, C, H, W] as [N, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Return the images with ``indices`` [M] of a feature map [N, C, H, W].

    The result has the same layout. ``index_select`` alone would change it.
    """
    return last_channels(x).index_select(0, indices).permute(0, 3, 1, 2)
