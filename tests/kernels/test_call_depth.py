"""How little lies between the attention layer and the machine: functions of this library that one call enters."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import deformdetr
from deformdetr.nn import MSDeformAttn

# Annotations that are checked add functions of their own.
pytestmark = pytest.mark.unchecked

SOURCES = str(Path(deformdetr.__file__).parent)
SHAPES = [(6, 7), (3, 4), (2, 2), (1, 1)]


def entered_functions(call: Callable[[], object]) -> list[list[str]]:
    """Return the stack of this library's functions at every entry of one, but for linear layers."""
    stack: list[str] = []
    stacks: list[list[str]] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return
        if event == "call":
            stack.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            if not any(entry.startswith(("_layers.", "_linear.")) for entry in stack):
                stacks.append(list(stack))
        elif event == "return":
            stack.pop()

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return stacks


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_layer_calls_a_cpu_kernel_five_functions_deep(coordinates, as_tensor, padded, trains, rng):
    layer = MSDeformAttn(32, 4, 2, 3)
    pixels = sum(height * width for height, width in SHAPES)
    query, features = torch.randn(1, 9, 32, generator=rng), torch.randn(1, pixels, 32, generator=rng)
    reference_points = torch.rand(1, 9, 4, coordinates, generator=rng)
    shapes = torch.tensor(SHAPES) if as_tensor else SHAPES
    mask = torch.rand(1, pixels, generator=rng) < 0.3 if padded else None

    def call() -> None:
        with torch.set_grad_enabled(trains):
            layer(query, reference_points, features, shapes, None, mask)

    # The first call compiles.
    call()
    stacks = entered_functions(call)
    path = ["_attention.forward", "_ms_deform_attn.fused_ms_deform_attn", "_op._run_forward", "_launcher.forward"]
    assert [*path, "_threads.run_on_threads"] in stacks
    deepest = max(stacks, key=len)
    assert len(deepest) <= 5, deepest
    assert len(stacks) <= 80, sorted(entry[-1] for entry in stacks)
