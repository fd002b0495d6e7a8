"""Code that was written for the compiled extension, run with the replacement."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deformdetr.integrations import extension
from deformdetr.kernels import ms_deform_attn

SHAPES = torch.tensor([[4, 6], [3, 2], [1, 1]])
STARTS = torch.tensor([0, 24, 30])

# Above what the operator's own tests allow in each precision, because three of its calls are compared.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float16: 8e-3}


@pytest.fixture
def installed():
    extension.install()
    yield
    extension.uninstall()


def vendored_function() -> type[torch.autograd.Function]:
    """Return an autograd function as repositories write it around their extension."""
    import MultiScaleDeformableAttention

    class MSDeformAttnFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
            ctx.im2col_step = im2col_step
            ctx.save_for_backward(value, shapes, starts, locations, weights)
            return MultiScaleDeformableAttention.ms_deform_attn_forward(
                value, shapes, starts, locations, weights, ctx.im2col_step
            )

        @staticmethod
        @once_differentiable
        def backward(ctx, grad_output):
            by_value, by_locations, by_weights = MultiScaleDeformableAttention.ms_deform_attn_backward(
                *ctx.saved_tensors, grad_output, ctx.im2col_step
            )
            return by_value, None, None, by_locations, by_weights, None

    return MSDeformAttnFunction


def vendored_function_without_starts() -> type[torch.autograd.Function]:
    """Return an autograd function as repositories with the first version of the extension write it (TrackFormer)."""
    import MultiScaleDeformableAttention

    class MSDeformAttnFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, locations, weights, im2col_step):
            ctx.im2col_step = im2col_step
            output = MultiScaleDeformableAttention.ms_deform_attn_forward(
                value, shapes, locations, weights, ctx.im2col_step
            )
            ctx.save_for_backward(value, shapes, locations, weights)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx, grad_output):
            value, shapes, locations, weights = ctx.saved_tensors
            by_value, by_locations, by_weights = MultiScaleDeformableAttention.ms_deform_attn_backward(
                value, shapes, locations, weights, grad_output, ctx.im2col_step
            )
            return by_value, None, by_locations, by_weights, None

    return MSDeformAttnFunction


def apply_vendored(*, starts: bool, im2col_step: int = 64) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function of value, locations and weights that calls either version of the extension."""
    function = vendored_function() if starts else vendored_function_without_starts()
    known = (SHAPES, STARTS) if starts else (SHAPES,)
    return lambda value, locations, weights: function.apply(value, *known, locations, weights, im2col_step)


def random_inputs(rng: torch.Generator, *, batch: int = 2) -> list[Tensor]:
    """Draw value, locations and weights in float64, away from the borders of pixels; some locations are outside."""
    value = torch.randn(batch, 31, 2, 4, generator=rng, dtype=torch.float64)
    sizes = SHAPES.flip(-1)[:, None]
    pixel = torch.randint(-2, 7, (batch, 5, 2, 3, 2, 2), generator=rng) + 0.5
    position = pixel + torch.empty(pixel.shape, dtype=torch.float64).uniform_(0.1, 0.9, generator=rng)
    weights = torch.rand(batch, 5, 2, 3, 2, generator=rng, dtype=torch.float64)
    return [value, position / sizes, weights]


def gradients(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("starts", [True, False], ids=["starts", "no_starts"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_vendored_function_gives_the_outputs_and_gradients_of_the_operator(dtype: torch.dtype, starts: bool, rng):
    inputs = [tensor.to(dtype).double() for tensor in random_inputs(rng)]
    grad = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64).to(dtype)
    expected = gradients(lambda v, x, w: ms_deform_attn(v, SHAPES, x, w, "reference"), inputs, grad.double())
    actual = gradients(apply_vendored(starts=starts), [tensor.to(dtype) for tensor in inputs], grad)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert (got.double() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("starts", [True, False], ids=["starts", "no_starts"])
def test_vendored_function_passes_gradcheck(starts: bool, rng):
    value, locations, weights = random_inputs(rng, batch=1)
    inputs = [tensor.requires_grad_() for tensor in (value[..., :2], locations[:, :2], weights[:, :2])]
    assert torch.autograd.gradcheck(apply_vendored(starts=starts), inputs)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("starts", [True, False], ids=["starts", "no_starts"])
@pytest.mark.parametrize(("batch", "im2col_step"), [(3, 2), (5, 64), (1, 1)])
def test_batches_need_not_be_multiples_of_the_step(batch: int, im2col_step: int, starts: bool, rng):
    value, locations, weights = random_inputs(rng, batch=batch)
    out = apply_vendored(starts=starts, im2col_step=im2col_step)(value, locations, weights)
    torch.testing.assert_close(out, ms_deform_attn(value, SHAPES, locations, weights))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["ms_deform_attn_forward", "ms_deform_attn_backward"])
def test_other_numbers_of_arguments_raise(name: str, rng):
    import MultiScaleDeformableAttention

    value, locations, weights = random_inputs(rng)
    with pytest.raises(TypeError, match=rf"{name} takes \d or \d arguments, got 4"):
        getattr(MultiScaleDeformableAttention, name)(value, SHAPES, locations, weights)


@pytest.mark.gpu
@pytest.mark.usefixtures("installed")
def test_no_call_synchronizes_a_gpu(rng):
    function = vendored_function()
    inputs = [tensor.float().cuda().requires_grad_() for tensor in random_inputs(rng)]
    shapes, starts = SHAPES.cuda(), STARTS.cuda()

    def run() -> None:
        function.apply(inputs[0], shapes, starts, *inputs[1:], 64).sum().backward()

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("starts", [[0, 24, 31], [6, 0, 30], [0, 24]])
def test_other_level_starts_raise(starts: list[int], rng):
    import MultiScaleDeformableAttention

    value, locations, weights = random_inputs(rng)
    # The function itself, as users have it, without the checks that the test session adds around it.
    forward = inspect.unwrap(MultiScaleDeformableAttention.ms_deform_attn_forward)
    with pytest.raises(ValueError, match=r"must be \[0, 24, 30\] for levels \[\[4, 6\], \[3, 2\], \[1, 1\]\]"):
        forward(value, SHAPES, torch.tensor(starts), locations, weights, 64)


@pytest.mark.usefixtures("installed")
def test_code_in_packages_finds_the_module(tmp_path, monkeypatch):
    functions = tmp_path / "vendored_models" / "ops" / "functions"
    functions.mkdir(parents=True)
    for package in (functions, functions.parent, functions.parent.parent):
        (package / "__init__.py").touch()
    (functions / "ms_deform_attn_func.py").write_text("import MultiScaleDeformableAttention as MSDA\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("vendored_models.ops.functions.ms_deform_attn_func")
    assert callable(module.MSDA.ms_deform_attn_forward)
    assert importlib.util.find_spec("MultiScaleDeformableAttention") is not None


@pytest.mark.parametrize("imported_before", [False, True])
def test_extensions_inside_packages_have_stand_ins_under_more_names(imported_before: bool, tmp_path, monkeypatch):
    name = f"package_imported_{'before' if imported_before else 'after'}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "attention.py").write_text(f"from {name} import _C\n")
    monkeypatch.syspath_prepend(tmp_path)
    if imported_before:
        importlib.import_module(name)
    extension.install(names=[f"{name}._C"])
    assert callable(importlib.import_module(f"{name}.attention")._C.ms_deform_attn_backward)
    assert callable(importlib.import_module("MultiScaleDeformableAttention").ms_deform_attn_backward)
    extension.uninstall()
    assert not hasattr(sys.modules[name], "_C")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{name}._C")


def test_installing_twice_is_installing_once():
    extension.install()
    module = importlib.import_module("MultiScaleDeformableAttention")
    extension.install()
    assert importlib.import_module("MultiScaleDeformableAttention") is module
    for _ in range(2):
        extension.uninstall()
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("MultiScaleDeformableAttention")


def test_extension_that_is_imported_already_stays_unless_it_is_to_be_replaced(monkeypatch):
    real = ModuleType("MultiScaleDeformableAttention")
    real.__file__ = "/somewhere/MultiScaleDeformableAttention.so"
    monkeypatch.setitem(sys.modules, real.__name__, real)
    with pytest.raises(RuntimeError, match=r"imported already, from /somewhere/MultiScale.*\.so; .* replace=True"):
        extension.install(names=["another_extension"])
    assert "another_extension" not in sys.modules
    extension.install(replace=True)
    assert importlib.import_module("MultiScaleDeformableAttention") is not real
    extension.uninstall()
    assert importlib.import_module("MultiScaleDeformableAttention") is real


def test_uninstall_keeps_later_replacements_by_other_code():
    extension.install()
    other = ModuleType("MultiScaleDeformableAttention")
    sys.modules["MultiScaleDeformableAttention"] = other
    extension.uninstall()
    assert sys.modules.pop("MultiScaleDeformableAttention") is other


def test_a_string_of_names_raises():
    with pytest.raises(TypeError, match=r"collection of names, got the string 'groundingdino\._C'"):
        extension.install(names="groundingdino._C")
