"""Sampling grids for `torch.nn.functional.grid_sample`."""

import torch
from jaxtyping import Float
from torch import Tensor


def image_grid(height: int, width: int, valid_ratio: Float[Tensor, " 2"]) -> Float[Tensor, "1 {height} {width} 2"]:
    """Return the pixel centers of an image at the top left of a padded one, in [-1, 1] over the padded image.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        valid_ratio: Fraction of the padded image's width and height that the image covers, (x, y).
    """
    x, y = (
        (torch.arange(size, dtype=torch.float32, device=ratio.device) + 0.5) * (2 * ratio / size) - 1
        for size, ratio in zip((width, height), valid_ratio.unbind(), strict=True)
    )
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1)[None]
