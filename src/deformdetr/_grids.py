"""Pixel centers of one image or feature map, and sampling grids for `torch.nn.functional.grid_sample`."""

import torch
from jaxtyping import Float
from torch import Tensor


def level_size(height: int, width: int, *, like: Tensor) -> Float[Tensor, " 2"]:
    """Return (width, height) in float32 on the device of `like`, filled there: a copy would synchronize the device."""
    return torch.stack([torch.full((), size, dtype=torch.float32, device=like.device) for size in (width, height)])


def pixel_indices(height: int, width: int, *, device: torch.device) -> Float[Tensor, "{height}*{width} 2"]:
    """Return the pixel centers of one level, (x, y) in pixels, row by row."""
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)


def padding_to_multiple(size: int, multiple: int) -> int:
    """Return the number of pixels that lengthen an axis to a multiple, in the form that compilers simplify."""
    return (size + multiple - 1) // multiple * multiple - size


def image_grid(height: int, width: int, valid_ratio: Float[Tensor, " 2"]) -> Float[Tensor, "1 {height} {width} 2"]:
    """Return the pixel centers of an image at the top left of a padded one, in [-1, 1] over the padded image.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        valid_ratio: Fraction of the padded image's width and height that the image covers, (x, y).
    """
    share = 2 * valid_ratio / level_size(height, width, like=valid_ratio)
    return (pixel_indices(height, width, device=valid_ratio.device) * share - 1).view(1, height, width, 2)
