"""Pixel coordinates on padded feature maps of several levels."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deformdetr._grids import level_size, pixel_indices

# (height, width) of every level, as ints.
LevelShapes: TypeAlias = Sequence[Sequence[int]]


def valid_sizes(padding_mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch 2"]:
    """Return the number of columns and rows that are not padding, (x, y), from the first row and the first column."""
    valid = ~padding_mask
    return torch.stack([valid[:, 0, :].sum(-1), valid[:, :, 0].sum(-1)], dim=-1).float()


def valid_ratios(padding_masks: Sequence[Bool[Tensor, "batch _height _width"]]) -> Float[Tensor, "batch levels 2"]:
    """Return the share of every level's width and height that is not padding, (x, y).

    Args:
        padding_masks: True at padded pixels, for each level.

    Examples:
        >>> mask = torch.zeros(1, 4, 8, dtype=torch.bool)
        >>> mask[:, :, 6:] = True
        >>> valid_ratios([mask])
        tensor([[[0.7500, 1.0000]]])
    """
    return torch.stack([valid_sizes(mask) / level_size(*mask.shape[1:], like=mask) for mask in padding_masks], dim=1)


def pixel_centers(
    spatial_shapes: LevelShapes, ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch pixels levels 2"]:
    """Return the center of every pixel of every level, (x, y), as a fraction of each padded level.

    The center is at the same fraction of the valid part on all levels.

    Args:
        spatial_shapes: (height, width) of every level.
        ratios: Share of each level's width and height that is not padding, (x, y).

    Examples:
        >>> pixel_centers([(1, 2)], torch.ones(1, 1, 2))
        tensor([[[[0.2500, 0.5000]],
        <BLANKLINE>
                 [[0.7500, 0.5000]]]])
    """
    centers = []
    for level, (height, width) in enumerate(spatial_shapes):
        valid = ratios[:, None, level] * level_size(height, width, like=ratios)
        centers.append(pixel_indices(height, width, device=ratios.device) / valid)
    return torch.cat(centers, dim=1)[:, :, None] * ratios[:, None]
