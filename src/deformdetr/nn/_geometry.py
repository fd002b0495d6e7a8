"""Where pixels lie on padded feature maps of several levels."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# (height, width) of every level, known to the host.
LevelShapes: TypeAlias = Sequence[Sequence[int]]


def valid_sizes(padding_mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch 2"]:
    """Count the columns and the rows that are not padding, (x, y), along the first row and the first column."""
    valid = ~padding_mask
    return torch.stack([valid[:, 0, :].sum(-1), valid[:, :, 0].sum(-1)], dim=-1).float()


def valid_ratios(padding_masks: Sequence[Bool[Tensor, "batch _height _width"]]) -> Float[Tensor, "batch levels 2"]:
    """Give the share of every level's width and height that is not padding, (x, y)."""
    return torch.stack([valid_sizes(mask) / level_size(*mask.shape[1:], like=mask) for mask in padding_masks], dim=1)


def level_size(height: int, width: int, *, like: Tensor) -> Float[Tensor, " 2"]:
    """Give (width, height) in float32, filled on the device of `like`: a copy to it would make the host wait."""
    return torch.stack([torch.full((), size, dtype=torch.float32, device=like.device) for size in (width, height)])


def pixel_indices(height: int, width: int, *, device: torch.device) -> Float[Tensor, "{height}*{width} 2"]:
    """Give the pixel centres of one level, (x, y) in pixels, row by row."""
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)


def pixel_centers(
    spatial_shapes: LevelShapes, ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch pixels levels 2"]:
    """Give the centre of every pixel of every level, (x, y), as it is found on each level.

    A centre is a fraction of the valid part of its own level; on level k it lies at that fraction of the valid part of
    k, expressed as a fraction of the padded level, which is what sampling counts in.

    Args:
        spatial_shapes: (height, width) of every level.
        ratios: Share of each level's width and height that is not padding, (x, y).
    """
    centers = []
    for level, (height, width) in enumerate(spatial_shapes):
        valid = ratios[:, None, level] * level_size(height, width, like=ratios)
        centers.append(pixel_indices(height, width, device=ratios.device) / valid)
    return torch.cat(centers, dim=1)[:, :, None] * ratios[:, None]
