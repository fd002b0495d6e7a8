"""Comparison and size of tensors, whatever they hold: checkpoints come from anywhere."""

import torch
from torch import Tensor


def are_equal(first: Tensor, second: Tensor) -> bool:
    """Compare values; NaN, which training may end in, equals itself."""
    return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())


def largest_value(tensor: Tensor) -> Tensor:
    """Return the largest absolute value, NaN where there is any, and 0 of no values."""
    values = tensor.detach().cpu()
    values = values.abs() if values.is_complex() else values.to(torch.float64).abs()
    return values.to(torch.float64).max() if values.numel() else torch.zeros((), dtype=torch.float64)
