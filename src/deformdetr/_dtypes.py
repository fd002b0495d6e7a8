"""The precision that geometry, probabilities and losses are computed in."""

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert half precision, which cannot tell neighboring pixels of an image apart, to float32; keep float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
