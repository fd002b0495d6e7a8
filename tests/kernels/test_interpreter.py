"""The fused operator under compilers, with Triton's kernels in the interpreter."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from deformdetr.kernels import _op, _reference, fused_ms_deform_attn
from deformdetr.kernels._levels import Pyramid, place_levels
from sampling import assert_close

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
    assert any(node.target == torch.ops.deformdetr.ms_deform_attn.default for node in program.graph.nodes)
    others = [tensor.detach() for tensor in random_inputs(rng, 3, 4, 9)]
    torch.testing.assert_close(program.module()(*others), Attend()(*others))


def test_one_call_asks_once_whether_triton_runs(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    runs_triton = _op._runs_triton
    monkeypatch.setattr(_op, "_runs_triton", lambda *tensors: (asked.append(len(tensors)), runs_triton(*tensors))[1])
    value, references, offsets, logits = random_inputs(rng, 3, 4, 5)
    out = fused_ms_deform_attn(value, [(3, 4)], references, offsets, logits)
    assert asked == [4]
    out.sum().backward()
    assert asked == [4, 4]


# opcheck itself reads the gradients of non-leaf tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
def test_opcheck_passes_on_the_forward_and_the_backward_op(padded: bool, rng: torch.Generator):
    value, *rest = random_inputs(rng, 3, 4, 5)
    mask = torch.rand(1, 12, generator=rng) < 0.3 if padded else None
    references, offsets, logits = rest
    inputs = (value, None, [3, 4], [], offsets, logits, references, mask, False)
    half_sums = padded
    opcheck(torch.ops.deformdetr.ms_deform_attn.default, (*inputs, half_sums))
    out = attend(value / 2, *rest, 3, 4).detach()
    grad = torch.randn(out.shape, generator=rng)
    opcheck(
        torch.ops.deformdetr.ms_deform_attn_backward.default,
        (grad, out, *inputs, True, True, True, True, half_sums),
        # The output has no gradient.
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize(
    ("is_fused", "deterministic", "repeats"),
    [(True, False, []), (False, False, []), (False, True, []), (False, False, [2, 1, 1]), (False, True, [2, 1, 1])],
)
def test_levels_that_do_not_fit_are_empty_where_only_the_device_knows_them(
    is_fused: bool, deterministic: bool, repeats: list[int], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    # Imported here, because it imports triton, which compiles or interprets as it is told before.
    from deformdetr.kernels import _triton
    from deformdetr.kernels._triton import _launcher

    # The host leaves the sizes alone, as it does on a GPU.
    monkeypatch.setattr(_launcher, "read_on_cpu", lambda pyramid, pixels: pyramid)
    sides = torch.tensor([-(2**40), -3, 0, 1, 2, 3, 5, 2**24 + 1, 2**31, 2**32 + 2, 2**62])
    for _ in range(5):
        sizes = sides[torch.randint(len(sides), (3, 2), generator=rng)]
        pixels = int(torch.randint(1, 30, (), generator=rng))
        pyramid = Pyramid(sizes, [], repeats)
        groups = sum(repeats) or len(sizes)
        # All around the value and its gradient lies something else.
        memory = torch.full((2 * pixels * 8 + 4096,), torch.nan)
        memory[2048 : 2048 + 2 * pixels * 8] = torch.randn(2 * pixels * 8, generator=rng)
        value = memory[2048 : 2048 + 2 * pixels * 8].view(2, pixels, 2, 4)
        weights = torch.randn(2, 5, 2, groups, 3, generator=rng)
        offsets = torch.rand(2, 5, 2, groups, 3, 2, generator=rng) * 1.5 - 0.25
        grad = torch.randn(2, 5, 8, generator=rng)
        needs = _triton.Needs(value=True, locations=True, weights=True, references=is_fused)
        references = torch.rand(2, 5, 3, 2, generator=rng) if is_fused else None
        sampling = _triton.Sampling(offsets, weights, references)
        out = _triton.forward(value, pyramid, sampling)
        grads = _triton.backward(grad, out, value, pyramid, sampling, needs, _triton.Sums(deterministic))
        levels = place_levels(pyramid, pixels)
        leaves = [tensor.double().requires_grad_() for tensor in (value, offsets, weights)]
        locations, attention = leaves[1:]
        if is_fused:
            table = torch.stack([torch.stack([level.width, level.height]) for level in levels]).clamp(min=1)
            locations = references.double()[:, :, None, :, None] + locations / table[:, None]
            attention = attention.flatten(3).softmax(-1).view(attention.shape)
        expected = _reference.forward(leaves[0], levels, locations, attention)
        assert_close(out, expected, 1e-5)
        for got, wanted in zip(grads, torch.autograd.grad(expected, leaves, grad.double()), strict=False):
            assert_close(got, wanted, 1e-5)
