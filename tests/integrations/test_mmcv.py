"""The operator in mmcv, in a package with mmcv's files."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deformdetr.integrations import mmcv
from deformdetr.kernels import ms_deform_attn

SHAPES = torch.tensor([[4, 6], [3, 2]])
STARTS = torch.tensor([0, 24])

# What the real files do when they are imported, and how they call the extension.
ATTENTION = '''
import importlib
import torch

ext_module = importlib.import_module("mmcv._ext")
assert hasattr(ext_module, "ms_deform_attn_forward") and hasattr(ext_module, "ms_deform_attn_backward")


class MultiScaleDeformableAttnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        ctx.im2col_step = im2col_step
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return ext_module.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=im2col_step)

    @staticmethod
    def backward(ctx, grad_output):
        value, shapes, starts, locations, weights = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        ext_module.ms_deform_attn_backward(
            value, shapes, starts, locations, weights, grad_output.contiguous(), *grads, im2col_step=ctx.im2col_step
        )
        return grads[0], None, None, grads[1], grads[2], None


def multi_scale_deformable_attn_pytorch(value, shapes, locations, weights):
    raise AssertionError("the slow one was called")


def attend(value, shapes, starts, locations, weights):
    """Sample as the layer does without a GPU."""
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
'''
OTHER_OPERATOR = """
import importlib

ext_module = importlib.import_module("mmcv._ext")
assert hasattr(ext_module, "roi_align_forward")


def roi_align():
    return ext_module.roi_align_forward()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package with mmcv's files where it can be imported, without compiled operators."""
    ops = tmp_path / "mmcv" / "ops"
    ops.mkdir(parents=True)
    (ops.parent / "__init__.py").touch()
    (ops / "__init__.py").write_text("from . import multi_scale_deform_attn, roi_align\n")
    (ops / "multi_scale_deform_attn.py").write_text(ATTENTION)
    (ops / "roi_align.py").write_text(OTHER_OPERATOR)
    monkeypatch.syspath_prepend(tmp_path)
    yield ops.parent
    mmcv.uninstall()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmcv"]:
        del sys.modules[name]


def random_inputs(rng: torch.Generator) -> list[Tensor]:
    value = torch.randn(3, 30, 2, 4, generator=rng)
    locations = torch.rand(3, 5, 2, 2, 2, 2, generator=rng)
    weights = torch.rand(3, 5, 2, 2, 2, generator=rng)
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


def assert_is_the_operator(function, rng: torch.Generator) -> None:
    """Compare output and gradients of a function of value, locations and weights."""
    inputs, grad = random_inputs(rng), torch.randn(3, 5, 8, generator=rng)
    out, expected = function(*inputs), ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad))


def by_function(function: type):
    return lambda value, locations, weights: function.apply(value, SHAPES, STARTS, locations, weights, 64)


def test_functions_have_the_signatures_of_mmcv(rng):
    assert_is_the_operator(by_function(mmcv.MultiScaleDeformableAttnFunction), rng)
    assert_is_the_operator(lambda v, x, w: mmcv.multi_scale_deformable_attn_pytorch(v, SHAPES, x, w), rng)


def test_function_refuses_other_level_starts(rng):
    value, locations, weights = random_inputs(rng)
    with pytest.raises(ValueError, match=r"level_start_index \[0, 6\] must be \[0, 24\]"):
        mmcv.MultiScaleDeformableAttnFunction.apply(value, SHAPES, torch.tensor([0, 6]), locations, weights, 64)


@pytest.mark.usefixtures("package")
def test_attention_of_an_installed_mmcv_runs_the_operator(rng):
    mmcv.install()
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    assert_is_the_operator(lambda v, x, w: attention.attend(v, SHAPES, STARTS, x, w), rng)
    assert_is_the_operator(by_function(attention.MultiScaleDeformableAttnFunction), rng)


def test_modules_that_took_the_functions_by_name_have_the_operator_too(package: Path, rng):
    (package / "project.py").write_text(
        "from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch as slow\n"
    )
    (package / "_ext.py").write_text("ms_deform_attn_forward = ms_deform_attn_backward = roi_align_forward = print\n")
    project = importlib.import_module("mmcv.project")
    theirs = project.slow
    mmcv.install()
    assert_is_the_operator(lambda v, x, w: project.slow(v, SHAPES, x, w), rng)
    mmcv.uninstall()
    assert project.slow is theirs


@pytest.mark.usefixtures("package")
def test_autograd_functions_of_others_around_the_extension_run_the_operator(rng):
    mmcv.install()
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    mmcv.uninstall()
    # The module's own again, around the stand-in for the extension that it has imported.
    assert attention.MultiScaleDeformableAttnFunction is not mmcv.MultiScaleDeformableAttnFunction
    assert_is_the_operator(by_function(attention.MultiScaleDeformableAttnFunction), rng)


@pytest.mark.usefixtures("package")
def test_other_operators_of_a_missing_extension_import_and_raise():
    mmcv.install()
    assert importlib.util.find_spec("mmcv._ext") is not None
    other = importlib.import_module("mmcv.ops.roi_align")
    with pytest.raises(NotImplementedError, match="roi_align_forward of mmcv is not compiled"):
        other.roi_align()


def test_compiled_extension_stays_where_there_is_one(package: Path, rng):
    (package / "_ext.py").write_text("ms_deform_attn_forward = ms_deform_attn_backward = roi_align_forward = print\n")
    mmcv.install()
    assert importlib.import_module("mmcv._ext").roi_align_forward is print
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    assert_is_the_operator(by_function(attention.MultiScaleDeformableAttnFunction), rng)


@pytest.mark.usefixtures("package")
def test_uninstall_restores_mmcv():
    for _ in range(2):
        mmcv.install()
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    mmcv.uninstall()
    assert "mmcv._ext" not in sys.modules
    with pytest.raises(AssertionError, match="the slow one was called"):
        attention.attend(None, SHAPES, STARTS, None, None)


def test_mmcv_that_cannot_be_imported_has_nothing_left_behind(package: Path):
    (package / "ops" / "roi_align.py").write_text("raise AssertionError('an operator is missing')\n")
    with pytest.raises(AssertionError, match="an operator is missing"):
        mmcv.install()
    assert "mmcv._ext" not in sys.modules


def test_missing_mmcv_raises():
    assert importlib.util.find_spec("mmcv") is None
    with pytest.raises(ModuleNotFoundError, match="mmcv is not installed"):
        mmcv.install()
    assert "mmcv._ext" not in sys.modules
