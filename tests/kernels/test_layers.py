"""Linear layers that are watched, replaced, differentiated forward or without memory are as PyTorch's."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deformdetr.kernels._layers import apply_linear
from linear_layers import pair


@pytest.mark.parametrize("at", [0, 1, 2])
def test_tensors_whose_storage_was_shrunk_are_refused_by_the_product(at, rng, calls):
    layer, x = nn.Linear(8, 4), torch.randn(5, 8, generator=rng)
    (x, layer.weight.data, layer.bias.data)[at].untyped_storage().resize_(8)
    with pytest.raises(ValueError, match="its storage was resized to 8"):
        apply_linear(layer, x)
    with pytest.raises(ValueError, match="its storage was resized to 8"):
        torch.ops.deformdetr.linear(x, layer.weight.detach(), layer.bias.detach())


def test_rows_whose_storage_was_shrunk_are_refused_by_the_gradient_of_weights(rng):
    tensors = [torch.randn(2000, 8, generator=rng) for _ in range(2)]
    tensors[1].untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match="storage of size 8"):
        torch.ops.deformdetr.linear_weight_gradient(*tensors)


# PyTorch itself compiles formulas of forward mode by it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning", "ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_forward_mode_derivatives_are_those_of_pytorch(which, rng, calls):
    ours, theirs = pair(6, 4)
    x, tangents = torch.randn(5, 6, generator=rng), {"x": (5, 6), "weight": (4, 6), "bias": (4,)}
    tangent = torch.randn(tangents[which], generator=rng)
    derivatives = []
    for layer, module in ((ours.layer, ours), (theirs, theirs)):
        with forward_ad.dual_level():
            if which == "x":
                out = module(forward_ad.make_dual(x, tangent))
            else:
                parameter = getattr(layer, which).detach()
                delattr(layer, which)
                setattr(layer, which, forward_ad.make_dual(parameter, tangent))
                out = module(x)
            derivatives.append(forward_ad.unpack_dual(out).tangent.clone())
    torch.testing.assert_close(*derivatives)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning", "ignore:.torch.jit.script:DeprecationWarning")
def test_forward_mode_derivatives_of_gradients_are_those_of_pytorch(rng, calls):
    x, grad, tangent = (torch.randn(5, width, generator=rng) for width in (6, 4, 4))
    derivatives = []
    for layer in pair(6, 4):
        inputs = x.clone().requires_grad_()
        with forward_ad.dual_level():
            by_x, by_weight = torch.autograd.grad(
                layer(inputs), [inputs, next(layer.parameters())], forward_ad.make_dual(grad, tangent)
            )
            derivatives.append([forward_ad.unpack_dual(each).tangent.clone() for each in (by_x, by_weight)])
    torch.testing.assert_close(*derivatives)


def test_gradients_of_many_outputs_at_once_are_those_of_pytorch(rng, calls):
    x, grads = torch.randn(5, 6, generator=rng), torch.randn(3, 5, 4, generator=rng)
    results = []
    for layer in pair(6, 4):
        inputs = x.clone().requires_grad_()
        wanted = [inputs, *layer.parameters()]
        results.append(torch.autograd.grad(layer(inputs), wanted, grads, is_grads_batched=True))
    assert calls
    torch.testing.assert_close(*results)


def test_modes_that_see_functions_see_the_linear_one(rng, calls):
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **kwargs or {})

    with Watch():
        apply_linear(nn.Linear(6, 4), torch.randn(5, 6, generator=rng))
    assert F.linear in seen


def test_another_function_in_the_place_of_linear_is_called(rng, calls, monkeypatch):
    layer, x, linear = nn.Linear(6, 4), torch.randn(5, 6, generator=rng), F.linear
    expected = 2 * layer(x)
    monkeypatch.setattr(F, "linear", lambda *args: 2 * linear(*args))
    torch.testing.assert_close(apply_linear(layer, x), expected)


def test_a_forward_that_was_replaced_before_the_import_is_called():
    code = """
import torch
from torch import nn
forward = nn.Linear.forward
nn.Linear.forward = lambda layer, x: 2 * forward(layer, x)
from deformdetr.kernels import set_layer_kernels
from deformdetr.kernels._layers import apply_linear
set_layer_kernels(["linear"])
layer, x = nn.Linear(6, 4), torch.rand(64, 6)
torch.testing.assert_close(apply_linear(layer, x), layer(x))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("x", [None, "x", [1.0]])
def test_what_is_no_tensor_is_refused_as_pytorch_refuses_it(x, calls):
    layer = nn.Linear(6, 4)
    with pytest.raises(TypeError) as theirs:
        layer(x)
    with pytest.raises(TypeError) as ours:
        inspect.unwrap(apply_linear)(layer, x)
    assert str(ours.value) == str(theirs.value)
