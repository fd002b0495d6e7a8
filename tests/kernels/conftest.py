"""Fixtures for tests of layers' kernels."""

from collections.abc import Iterator

import pytest
import torch

from deformdetr.kernels import _linear, set_layer_kernels


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiply by oneDNN on any processor, for any number of rows."""
    monkeypatch.setattr(_linear, "_MIN_ROWS", 1)
    with set_layer_kernels(["linear"]):
        yield


@pytest.fixture
def calls(onednn: None, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Multiply by oneDNN, and record the shapes of the inputs."""
    inputs: list[torch.Size] = []
    linear = _linear.linear
    monkeypatch.setattr(_linear, "linear", lambda x, *rest: (inputs.append(x.shape), linear(x, *rest))[1])
    return inputs
