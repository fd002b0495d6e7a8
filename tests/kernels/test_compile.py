"""The operator under torch.compile and torch.export."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from deformdetr.kernels import _numba, ms_deform_attn
from deformdetr.testing import TOLERANCES, check_ms_deform_attn, output_and_gradients
from sampling import WITH_INTS, assert_close

pytestmark = pytest.mark.compile

SIZES = [(8, 9), (10, 7), (13, 21), (16, 16), (5, 31), (24, 40)]


def attend(fine: Tensor, coarse: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Attend to two feature maps whose sizes the compiler has to trace."""
    levels = (fine, coarse)
    value = torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2).unflatten(-1, (2, -1))
    shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
    return ms_deform_attn(value * 2, shapes, locations, weights)


def random_inputs(height: int, width: int, queries: int, rng: torch.Generator) -> list[Tensor]:
    inputs = [
        torch.randn(2, 8, height, width, generator=rng),
        torch.randn(2, 8, height // 2, width // 2, generator=rng),
        torch.rand(2, queries, 2, 2, 3, 2, generator=rng),
        torch.rand(2, queries, 2, 2, 3, generator=rng),
    ]
    return [tensor.requires_grad_() for tensor in inputs]


@pytest.mark.parametrize("convention", [WITH_INTS, None], ids=["ints", "tensor"])
@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("case", ["compiled", "exported"])
def test_operator_conforms(
    case: str, has_numba: bool, convention: list[str] | None, seed: int, monkeypatch: pytest.MonkeyPatch
):
    if not has_numba:
        monkeypatch.setattr(_numba, "is_usable", lambda channels, dtype: False)
    check_ms_deform_attn(ms_deform_attn, cases=[case], convention=convention, seed=seed).raise_for_failures()


def test_new_image_sizes_do_not_recompile_forward_or_backward(rng: torch.Generator):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for queries, (height, width) in enumerate(SIZES, start=5):
        inputs = random_inputs(height, width, queries, rng)
        grad = torch.randn(2, queries, 8, generator=rng)
        for got, wanted in zip(
            output_and_gradients(compiled, inputs, grad), output_and_gradients(attend, inputs, grad), strict=True
        ):
            assert_close(got, wanted, TOLERANCES[torch.float32])
    # One graph for the first size, and one for all others.
    assert counter.frame_count == 2


def test_shapes_in_a_tensor_do_not_break_the_graph(rng: torch.Generator):
    torch.compiler.reset()
    compiled = torch.compile(ms_deform_attn, fullgraph=True)
    for height, width in SIZES[:3]:
        value = torch.randn(2, height * width, 2, 4, generator=rng)
        locations = torch.rand(2, 5, 2, 1, 3, 2, generator=rng)
        weights = torch.rand(2, 5, 2, 1, 3, generator=rng)
        expected = ms_deform_attn(value, [(height, width)], locations, weights)
        out = compiled(value, torch.tensor([[height, width]]), locations, weights)
        torch.testing.assert_close(out, expected)


def test_exported_program_serves_other_sizes(rng: torch.Generator):
    class Attend(torch.nn.Module):
        def forward(self, fine: Tensor, coarse: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return attend(fine, coarse, locations, weights)

    height, width, coarse_height, coarse_width, queries = (
        torch.export.Dim(name, min=2, max=64)
        for name in ("height", "width", "coarse_height", "coarse_width", "queries")
    )
    program = torch.export.export(
        Attend(),
        tuple(random_inputs(12, 10, 5, rng)),
        dynamic_shapes=({2: height, 3: width}, {2: coarse_height, 3: coarse_width}, {1: queries}, {1: queries}),
    )
    assert any(node.target == torch.ops.deformdetr.ms_deform_attn.default for node in program.graph.nodes)
    inputs = random_inputs(9, 22, 8, rng)
    torch.testing.assert_close(program.module()(*inputs), attend(*inputs))
