"""How far results may be from the exact ones: one table for all cases."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 5e-6,
    torch.bfloat16: 3.2e-2,
    torch.float16: 4e-3,
}
"""Largest relative error, as `relative_error` has it, by the dtype of a result.

For half precision it is four times the resolution of the stored numbers, which leaves no room for sums in half
precision; for float32 and float64 there is room for another order of the sums.
"""


def tolerance(dtype: torch.dtype, value_dtype: torch.dtype | None = None) -> float:
    """Return the tolerance of a result.

    Args:
        dtype: Dtype of the result: the output or a gradient.
        value_dtype: Dtype of the value. Unless it is float64, float64 results need only the accuracy of float32.

    Examples:
        >>> import torch
        >>> tolerance(torch.float16)
        0.004
        >>> tolerance(torch.float64, torch.float16)
        5e-06
    """
    is_limited = dtype == torch.float64 and value_dtype not in (None, torch.float64)
    return TOLERANCES[torch.float32 if is_limited else dtype]


def relative_error(
    actual: Float[Tensor, "*shape"], exact: Float[Tensor, "*shape"], *, least_scale: float = 1e-30
) -> float:
    """Return the largest error relative to the largest finite exact number, in float64 on the CPU.

    It is infinite where one of both is infinite or NaN and the other is not the same, and 0 for empty tensors.

    Args:
        actual: What an implementation computes, on any device.
        exact: The exact numbers.
        least_scale: What the error is relative to if all exact numbers are smaller, because their terms cancel.

    Examples:
        >>> import torch
        >>> relative_error(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 5.0]))
        0.1
        >>> relative_error(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 5.0]))
        inf
    """
    got, wanted = actual.detach().double().cpu(), exact.detach().double().cpu()
    finite = wanted.isfinite()
    others = torch.where(finite, 0, got), torch.where(finite, 0, wanted)
    if not torch.equal(*(each.nan_to_num(nan=3, posinf=1, neginf=-1) for each in others)):
        return torch.inf
    if not finite.any():
        return 0.0
    error = ((got - wanted)[finite].abs().max() / wanted[finite].abs().max().clamp(min=least_scale)).item()
    return error if error == error else torch.inf
