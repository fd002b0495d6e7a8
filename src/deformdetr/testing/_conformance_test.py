"""The tests that `pytest --pyargs deformdetr.testing --implementation module:function` runs."""

import torch

from deformdetr.testing._plugin import Given


def test_ms_deform_attn(implementation: Given, case: str, dtype: torch.dtype) -> None:
    """Check one case in one dtype."""
    implementation.check(case, dtype)
