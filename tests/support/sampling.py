"""Comparison of tensors with the results in float64."""

from torch import Tensor

from deformdetr.testing import relative_error

# Names of the operator's arguments for checks that pass sizes of levels as Python ints, in place of a tensor.
WITH_INTS = ["value", "spatial_shapes_list", "sampling_locations", "attention_weights"]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with the float64 result, relative to its largest number."""
    assert actual.shape == expected.shape
    error = relative_error(actual, expected)
    assert error <= tolerance, f"off by {error:.3g} of the largest number"
