"""The fused operator as compilers see it, which takes Triton's kernels: in its interpreter, where there is no GPU."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from deformdetr.kernels import fused_ms_deform_attn

pytestmark = [pytest.mark.interpreter, pytest.mark.compile]


def random_inputs(rng: torch.Generator, height: int, width: int, queries: int) -> list[Tensor]:
    inputs = [
        torch.randn(1, height * width, 2, 8, generator=rng),
        torch.rand(1, queries, 1, 2, generator=rng),
        torch.randn(1, queries, 2, 1, 2, 2, generator=rng),
        torch.randn(1, queries, 2, 1, 2, generator=rng),
    ]
    return [tensor.requires_grad_() for tensor in inputs]


def attend(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor, height: int, width: int) -> Tensor:
    return fused_ms_deform_attn(value * 2, [(height, width)], references, offsets, logits)


def test_new_sizes_do_not_recompile_forward_or_backward(rng: torch.Generator):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for queries, (height, width) in enumerate([(3, 4), (5, 6), (4, 9), (7, 2)], start=5):
        inputs = random_inputs(rng, height, width, queries)
        out, expected = compiled(*inputs, height, width), attend(*inputs, height, width)
        torch.testing.assert_close(out, expected)
        grad = torch.randn(out.shape, generator=rng)
        for got, wanted in zip(
            torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
        ):
            torch.testing.assert_close(got, wanted)
    # One graph for the first size, and one for all others.
    assert counter.frame_count == 2


def test_exported_program_holds_the_fused_operator_as_one_node(rng: torch.Generator):
    class Attend(torch.nn.Module):
        def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return fused_ms_deform_attn(value, [(3, 4)], references, offsets, logits)

    inputs = [tensor.detach() for tensor in random_inputs(rng, 3, 4, 5)]
    queries = torch.export.Dim("queries", min=2, max=64)
    program = torch.export.export(
        Attend(), tuple(inputs), dynamic_shapes=({}, {1: queries}, {1: queries}, {1: queries})
    )
    assert any(node.target == torch.ops.deformdetr.fused_ms_deform_attn.default for node in program.graph.nodes)
    others = [tensor.detach() for tensor in random_inputs(rng, 3, 4, 9)]
    torch.testing.assert_close(program.module()(*others), Attend()(*others))


# opcheck itself reads the gradients of non-leaf tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
def test_opcheck_passes_on_the_forward_and_the_backward_op(padded: bool, rng: torch.Generator):
    value, *rest = random_inputs(rng, 3, 4, 5)
    mask = torch.rand(1, 12, generator=rng) < 0.3 if padded else None
    opcheck(torch.ops.deformdetr.fused_ms_deform_attn.default, (value, None, [3, 4], *rest, mask))
    out = attend(value / 2, *rest, 3, 4).detach()
    grad = torch.randn(out.shape, generator=rng)
    opcheck(
        torch.ops.deformdetr.fused_ms_deform_attn_backward.default,
        (grad, out, value, None, [3, 4], *rest, mask, True, True, True, True),
        # The output is given, and nobody differentiates by it.
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
