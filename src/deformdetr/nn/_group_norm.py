"""Group norm of maps of any size."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm, also where a group holds a single value, which becomes the bias.

    `nn.GroupNorm` does the same for two or more images, but refuses one image of one pixel with a group per channel.
    Results then depended on the size of the batch.
    """

    def forward(self, input: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:  # noqa: A002
        """Return the normalized features."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
