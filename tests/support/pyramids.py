"""Random feature pyramids of images that are padded at the bottom and on the right, as the layers take them."""

from typing import NamedTuple

import torch
from torch import Tensor

# (height, width) of every level of a batch, and of the valid part, by image and level.
SHAPES = [(6, 9), (3, 5), (2, 3)]
VALID = [[(6, 9), (3, 5), (2, 3)], [(4, 6), (2, 3), (1, 2)]]


class Pyramid(NamedTuple):
    """Levels of one batch, flattened and concatenated."""

    spatial_shapes: list[tuple[int, int]]
    masks: list[Tensor]
    """True at padding, (batch, height, width) for every level."""
    features: Tensor
    """(batch, pixels, channels)"""
    position: Tensor

    @property
    def padding_mask(self) -> Tensor:
        """(batch, pixels), True at padding."""
        return torch.cat([mask.flatten(1) for mask in self.masks], dim=1)


def masks_of(valid: list[list[tuple[int, int]]], spatial_shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Return every level's mask from the (height, width) of the valid part, by image and level."""
    masks = []
    for level, (height, width) in enumerate(spatial_shapes):
        mask = torch.ones(len(valid), height, width, dtype=torch.bool)
        for image, sizes in enumerate(valid):
            mask[image, : sizes[level][0], : sizes[level][1]] = False
        masks.append(mask)
    return masks


def random_pyramid(
    rng: torch.Generator, d_model: int, valid: list[list[tuple[int, int]]], spatial_shapes: list[tuple[int, int]]
) -> Pyramid:
    """Draw features and positions; padded pixels are drawn as the others are, for nothing may depend on them."""
    pixels = sum(height * width for height, width in spatial_shapes)
    features, position = torch.randn(2, len(valid), pixels, d_model, generator=rng)
    return Pyramid(spatial_shapes, masks_of(valid, spatial_shapes), features, position)
