"""Maps in the channels-last layout, where an image is one run of memory: rows of images can be taken and put back."""

from torch import Tensor


def last_channels(x: Tensor) -> Tensor:
    """Return a map [N, C, H, W] as [N, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def take(x: Tensor, images: Tensor) -> Tensor:
    """Return the ``images``, indices [M], of a map [N, C, H, W] in the layout, which ``index_select`` alone loses."""
    return last_channels(x).index_select(0, images).permute(0, 3, 1, 2)
