"""What tests of layers share."""

import pytest
import torch

from deformdetr.nn import _onednn


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Let oneDNN serve whatever it can on any CPU, and record what it was given."""
    inputs: list[torch.Size] = []
    linear = _onednn.linear
    monkeypatch.setattr(_onednn, "_is_faster", lambda: True)
    monkeypatch.setattr(_onednn, "linear", lambda x, *rest: (inputs.append(x.shape), linear(x, *rest))[1])
    return inputs
