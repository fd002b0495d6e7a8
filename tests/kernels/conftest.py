"""Fixtures for tests of kernels: where they run, and what linear layers multiply by."""

import os
from collections.abc import Iterator

import pytest
import torch

from deformdetr.kernels import _linear, _numba, set_layer_kernels

# In the interpreter, Triton's kernels take the place of both.
ON_CPUS = ["cpu"] if os.environ.get("TRITON_INTERPRET") == "1" else ["cpu", "cpu without numba"]


@pytest.fixture(params=[*ON_CPUS, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, _, way = request.param.partition(" ")
    if way:
        monkeypatch.setattr(_numba, "is_usable", lambda channels, dtype: False)
    return name


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
