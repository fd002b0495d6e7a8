import pytest
import torch

from deformdetr._dtypes import at_least_float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_only_half_precision_is_widened(given, expected):
    tensor = torch.ones(2, 3, dtype=given)
    widened = at_least_float32(tensor)
    assert widened.dtype == expected
    assert (widened is tensor) == (given == expected)
