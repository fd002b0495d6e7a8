"""Feature maps of several scales, flattened for deformable attention."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deformdetr.models._inputs import shrink_mask
from deformdetr.nn import valid_ratios


class Pyramid(NamedTuple):
    """Feature maps of several scales, finest first, and their padding."""

    levels: list[Float[Tensor, "batch d_model _height _width"]]
    masks: list[Bool[Tensor, "batch _height _width"]]
    """True at padded pixels."""
    spatial_shapes: list[tuple[int, int]]
    """(height, width) of every level."""
    padding_mask: Bool[Tensor, "batch pixels"]
    """The masks, flattened."""
    valid_ratios: Float[Tensor, "batch levels 2"]
    """Unpadded fraction of each level's width and height, (x, y)."""

    @classmethod
    def from_levels(
        cls,
        levels: list[Float[Tensor, "batch d_model _height _width"]],
        padding_mask: Bool[Tensor, "batch height width"],
    ) -> "Pyramid":
        """Build a pyramid from its levels and the padding mask of the images."""
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        masks = [shrink_mask(padding_mask, height, width) for height, width in spatial_shapes]
        flat = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        return cls(levels, masks, spatial_shapes, flat, valid_ratios(masks))

    def unflatten(
        self, pixels: Float[Tensor, "batch pixels d_model"]
    ) -> list[Float[Tensor, "batch d_model _height _width"]]:
        """Undo `flatten_levels`: return the feature map of every level."""
        pieces = torch.split(pixels, [height * width for height, width in self.spatial_shapes], dim=1)
        return [piece.transpose(1, 2).view(level.shape) for piece, level in zip(pieces, self.levels, strict=True)]


def flatten_levels(
    levels: Sequence[Float[Tensor, "batch d_model _height _width"]],
) -> Float[Tensor, "batch pixels d_model"]:
    """Return the pixels of all levels, row by row, levels concatenated."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
