"""Linear layers compute what calling `torch.nn.Linear` does, by oneDNN where that is faster."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.library import opcheck
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from deformdetr import PRESETS, DeformableDETRConfig
from deformdetr.config import ConvBackboneConfig
from deformdetr.kernels._layers import apply_linear
from deformdetr.nn import MLP, FeedForward, MSDeformAttn
from linear_layers import Applied, pair


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Compare sums over many rows, whose rounding errors are those of their largest."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (2, 3, 4, 24), (1, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_out", [1, 10, 33])
def test_output_and_gradients_are_those_of_pytorch(shape, bias, d_out, rng, calls):
    ours, theirs = pair(24, d_out, bias=bias)
    x = torch.randn(*shape, generator=rng)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(tensor) for layer, tensor in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    grad = torch.randn(*outputs[0].shape, generator=rng)
    for out in outputs:
        out.backward(grad)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert calls == [shape]


@pytest.mark.parametrize("shape", [(1024, 8), (2, 600, 8), (5000, 8), (1024, 513)], ids=str)
@pytest.mark.parametrize("d_out", [1, 33, 513])
def test_gradients_of_many_rows_are_those_of_pytorch(shape, d_out, rng, calls):
    ours, theirs = pair(shape[-1], d_out)
    theirs.double()
    x = torch.randn(*shape, generator=rng)
    for strided in (x, x.transpose(0, -2).contiguous().transpose(0, -2)):
        grads = [
            torch.autograd.grad(layer(each).square().sum(), list(layer.parameters()))
            for layer, each in ((ours, strided), (theirs, strided.double()))
        ]
        assert all(mine.is_contiguous() and mine.shape == other.shape for mine, other in zip(*grads, strict=True))
        # Together, because a sum of one column's rows may be near zero.
        assert_near(*(torch.cat([each.flatten() for each in some]) for some in grads))
    assert len(calls) == 2


def test_inputs_of_other_strides_are_the_same(rng, calls):
    ours, theirs = pair(24, 10)
    x = torch.randn(2, 24, 7, generator=rng).transpose(1, 2)
    for view in (x, x[:, ::2], x[:, :, :].expand(2, 7, 24), x[:1].expand(3, -1, -1)):
        torch.testing.assert_close(ours(view), theirs(view))
    assert len(calls) == 4


@pytest.mark.parametrize("which", list(itertools.product([True, False], repeat=3)), ids=str)
def test_only_what_needs_gradients_gets_them(which, rng, calls):
    layer = Applied(nn.Linear(6, 4))
    tensors = (torch.randn(5, 6, generator=rng), layer.layer.weight, layer.layer.bias)
    for tensor, needed in zip(tensors, which, strict=True):
        tensor.requires_grad_(needed)
    out = layer(tensors[0])
    assert out.requires_grad == any(which)
    if any(which):
        out.sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(which)
    assert calls


def test_gradients_can_be_differentiated(rng, calls):
    layers, x = pair(6, 4), torch.randn(5, 6, generator=rng)

    def penalty(layer: nn.Module) -> list[Tensor]:
        tensors = [x.clone().requires_grad_(), *layer.parameters()]
        gradients = torch.autograd.grad(layer(tensors[0]).sin().sum(), tensors, create_graph=True)
        return list(torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), tensors))

    for mine, other in zip(*map(penalty, layers), strict=True):
        torch.testing.assert_close(mine, other)
    assert len(calls) == 1


def test_output_can_be_changed_in_place(rng, calls):
    ours, theirs = pair(6, 4)
    for layer in (ours, theirs):
        out = layer(torch.ones(2, 3, 6))
        out[:, 0] = 0
        out.relu_()
        out.sum().backward()
    torch.testing.assert_close(ours.layer.weight.grad, theirs.weight.grad)
    assert calls


def test_what_onednn_does_not_serve_is_left_to_pytorch(rng, calls):
    layer, x = Applied(nn.Linear(6, 4)), torch.randn(5, 6, generator=rng)
    expected = layer.layer(x)
    torch.testing.assert_close(layer(x[0]), expected[0])
    assert layer(x[:0]).shape == (0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(torch.func.vmap(layer)(x), expected)
    assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).is_meta
    assert calls == []


def test_onednn_can_be_switched_off(rng, calls):
    layer, x = Applied(nn.Linear(6, 4)), torch.randn(5, 6, generator=rng)
    torch.backends.mkldnn.set_flags(False)
    try:
        layer(x)
    finally:
        torch.backends.mkldnn.set_flags(True)
    assert calls == []
    layer(x)
    assert calls == [(5, 6)]


@pytest.mark.compile
@pytest.mark.parametrize("bias", [True, False])
def test_compiled_layers_take_the_same_product(bias, rng, onednn):
    torch.compiler.reset()
    ours, theirs = pair(24, 10, bias=bias)
    seen = EagerAndRecordGraphs()
    compiled = torch.compile(ours, fullgraph=True)
    torch.compile(ours, fullgraph=True, backend=seen)(torch.randn(5, 24, generator=rng))
    assert "deformdetr.linear" in seen.graphs[0].print_readable(print_output=False)
    for positions in (7, 5, 9):
        x = torch.randn(2, positions, 24, generator=rng, requires_grad=True)
        grads = [torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]) for layer in (compiled, theirs)]
        for got, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.compile
def test_compiled_layers_have_the_gradients_of_many_rows(rng, onednn):
    torch.compiler.reset()
    ours, theirs = pair(24, 10)
    theirs.double()
    x = torch.randn(2, 600, 24, generator=rng)
    loss = torch.compile(ours, fullgraph=True)(x).square().sum()
    grads = torch.autograd.grad(loss, list(ours.parameters()))
    expected = torch.autograd.grad(theirs(x.double()).square().sum(), list(theirs.parameters()))
    for got, wanted in zip(grads, expected, strict=True):
        assert_near(got, wanted)


@pytest.mark.compile
def test_compiled_transforms_see_pytorchs_operators(rng, onednn):
    torch.compiler.reset()
    layer, x = Applied(nn.Linear(6, 4)), torch.randn(3, 5, 6, generator=rng)
    compiled = torch.compile(torch.func.vmap(layer), fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.compile
def test_exported_layers_hold_pytorchs_operators_alone(rng, onednn):
    program = torch.export.export(Applied(nn.Linear(6, 4)), (torch.randn(5, 6, generator=rng),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.linear.default"]


@pytest.mark.compile
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_passes_on_the_product(bias, rng):
    a, b = torch.randn(5, 6, generator=rng), torch.randn(6, 4, generator=rng).T
    opcheck(torch.ops.deformdetr.linear.default, (a, b, torch.randn(4, generator=rng) if bias else None))


@pytest.mark.compile
@pytest.mark.parametrize("rows", [5, 1100])
@pytest.mark.parametrize("columns", [3, 7])
def test_opcheck_passes_on_the_gradient_of_weights(columns, rows, rng):
    opcheck(
        torch.ops.deformdetr.linear_weight_gradient.default,
        (torch.randn(rows, columns, generator=rng), torch.randn(rows, 5, generator=rng)),
    )


def test_counters_of_operations_see_the_product(rng, calls):
    layer = Applied(nn.Linear(6, 4))
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(5, 6, generator=rng))
    assert counter.get_total_flops() == 2 * 5 * 6 * 4
    assert calls == []


def test_layers_hold_linear_layers_that_pickle_and_hook(rng):
    layer = FeedForward(8, 16, dropout=0.0)
    parts = (layer.linear1, layer.linear2, *MSDeformAttn(8, 1, 2).children())
    assert all(type(part) is nn.Linear for part in parts)
    x = torch.randn(2, 3, 8, generator=rng)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    seen = []
    layer.linear1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer(x)
    assert seen == [(2, 3, 16)]


@pytest.mark.parametrize("width", [5, 7])
def test_wrong_width_is_refused_as_pytorch_refuses_it(width, rng, calls):
    ours, theirs = pair(6, 4)
    x = torch.randn(2, 3, width, generator=rng)
    with pytest.raises(RuntimeError) as expected:
        theirs(x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        ours(x)
    assert str(error.value) == str(expected.value)


@pytest.mark.compile
def test_compiled_layer_refuses_a_wrong_width_as_pytorch_does(rng, onednn):
    torch.compiler.reset()
    compiled = torch.compile(Applied(nn.Linear(6, 4)), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes|size mismatch|must have same reduction dim"):
        compiled(torch.randn(3, 5, generator=rng))


def hook_forward(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)


def hook_inputs(layer: nn.Linear) -> None:
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def hook_gradients(layer: nn.Linear) -> None:
    layer.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))


def replace_forward(layer: nn.Linear) -> None:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def prune_weights(layer: nn.Linear) -> None:
    mask = torch.zeros_like(layer.weight)
    mask[:, ::2] = 1
    prune.custom_from_mask(layer, "weight", mask)


def parametrize_weights(layer: nn.Linear) -> None:
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize(
    "change", [hook_forward, hook_inputs, hook_gradients, replace_forward, prune_weights, parametrize_weights]
)
def test_changes_of_a_linear_layer_count(change, rng, calls):
    ours, theirs = pair(6, 4)
    change(ours.layer)
    change(theirs)
    x = torch.randn(5, 6, generator=rng, requires_grad=True)
    results = [
        (out := layer(x), *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])) for layer in (ours, theirs)
    ]
    torch.testing.assert_close(*results)


def test_hooks_of_all_modules_see_linear_layers(rng, calls):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    try:
        MLP(6, 8, 4, 2)(torch.randn(5, 6, generator=rng))
    finally:
        handle.remove()
    assert seen == [nn.Linear, nn.Linear, MLP]
    assert calls == []


def test_another_module_can_stand_for_a_linear_layer(rng, calls):
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.added = base, nn.Linear(base.in_features, base.out_features)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.added(x)

    layer = MLP(6, 8, 4, 1)
    x = torch.randn(5, 6, generator=rng)
    layer.layers[0] = adapted = Adapted(layer.layers[0])
    torch.testing.assert_close(layer(x), adapted(x))


def test_copies_have_weights_of_their_own(rng, calls):
    layer, x = MLP(6, 8, 4, 2), torch.randn(5, 6, generator=rng)
    expected = layer(x)
    copied = copy.deepcopy(layer)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(copied(x), expected)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("preset", PRESETS)
def test_dynamic_quantization_finds_all_linear_layers(preset, rng):
    config = PRESETS[preset]
    changes = {"d_model": 16, "n_heads": 2, "d_ffn": 24, "num_encoder_layers": 1, "num_decoder_layers": 2}
    if isinstance(config, DeformableDETRConfig):
        changes["norm_groups"] = 2
    backbone = ConvBackboneConfig(channels=(8, 8, 8, 8))
    model = config.replace(num_classes=5, num_queries=7, backbone=backbone, **changes).build().eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert any(type(part) is nn.Linear for part in model.modules())
    assert not any(type(part) is nn.Linear for part in quantized.modules())
    images = torch.randn(2, 3, 64, 96, generator=rng)
    outputs, expected = quantized(images), model(images)
    assert outputs["pred_logits"].shape == expected["pred_logits"].shape
    if not getattr(config, "two_stage", False):
        # Eight bits choose other queries among the proposals.
        torch.testing.assert_close(outputs["pred_boxes"], expected["pred_boxes"], rtol=0, atol=0.1)


@pytest.mark.compile
@pytest.mark.parametrize(
    "layer", [MLP(6, 8, 4, 2), FeedForward(6, 8, dropout=0.0)], ids=lambda layer: type(layer).__name__
)
def test_symbolic_traces_hold_the_linear_layers(layer, rng, onednn):
    traced = torch.fx.symbolic_trace(layer)
    called = [traced.get_submodule(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert sum(type(module) is nn.Linear for module in called) == 2
    x = torch.randn(5, 6, generator=rng)
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("shapes", [
    [(5, 8), (4, 6), None], [(5, 8), (2, 4, 8), None], [(5, 8), (4, 8), (1000,)], [(5, 8), (4, 8), (4, 4)],
    [(2, 5, 8), (4, 8), (3,)], [(5, 8), (4,), None],
], ids=str)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused_by_the_product_itself(shapes, rng):
    tensors = [None if shape is None else torch.randn(shape, generator=rng) for shape in shapes]
    # oneDNN would read beyond three-dimensional weights.
    with pytest.raises(RuntimeError, match=r"size|shape|dimension"):
        torch.ops.deformdetr.linear(*tensors)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_tensors_of_several_devices_are_refused_by_the_product_itself(where, rng):
    tensors = [torch.randn(shape, generator=rng) for shape in ((5, 8), (4, 8), (4,))]
    tensors[where] = tensors[where].to("meta")
    with pytest.raises(ValueError, match=r"one device, got .*meta"):
        torch.ops.deformdetr.linear(*tensors)
    if where < 2:
        with pytest.raises(ValueError, match=r"one device, got .*meta"):
            torch.ops.deformdetr.linear_weight_gradient(*(tensor[:4] for tensor in tensors[:2]))


@pytest.mark.parametrize("shapes", [[(2000, 8), (1024, 8)], [(1024, 8), (2048, 8)], [(10, 8), (20, 8)]], ids=str)
def test_rows_that_do_not_fit_are_refused_by_the_gradient_of_weights_itself(shapes, rng):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.ops.deformdetr.linear_weight_gradient(*(torch.randn(shape, generator=rng) for shape in shapes))


@pytest.mark.parametrize("shape", [(4, 3), (2, 8), (2, 4, 8)], ids=str)
def test_weights_that_change_shape_before_the_backward_are_refused(shape, rng, calls):
    layer, x = nn.Linear(8, 4), torch.randn(2000, 8, generator=rng, requires_grad=True)
    out = apply_linear(layer, x)
    layer.weight.data = torch.randn(shape, generator=rng)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out.sum(), x)
