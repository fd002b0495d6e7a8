"""The operator in detrex and in packages of its layout."""

import importlib
import sys

import pytest
import torch

from deformdetr.integrations import detrex
from deformdetr.kernels import ms_deform_attn

SHAPES = torch.tensor([[4, 6], [3, 2]])
STARTS = torch.tensor([0, 24])

ATTENTION = """
from {package} import _C


class MultiScaleDeformableAttnFunction:
    apply = _C.ms_deform_attn_forward


def multi_scale_deformable_attn_pytorch(value, shapes, locations, weights):
    raise AssertionError("the slow one was called")


def attend(value, shapes, starts, locations, weights):
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
"""


def sample(attention, rng: torch.Generator) -> None:
    """Call a module of this layout in both of its ways, and compare."""
    value = torch.randn(2, 30, 2, 4, generator=rng)
    locations = torch.rand(2, 5, 2, 2, 2, 2, generator=rng)
    weights = torch.rand(2, 5, 2, 2, 2, generator=rng)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    function = attention.MultiScaleDeformableAttnFunction
    torch.testing.assert_close(function.apply(value, SHAPES, STARTS, locations, weights, 64), expected)
    torch.testing.assert_close(attention.attend(value, SHAPES, STARTS, locations, weights), expected)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("detrex.layers.multi_scale_deform_attn", ()),
        (
            "groundingdino.models.GroundingDINO.ms_deform_attn",
            ("groundingdino.models.GroundingDINO.ms_deform_attn",),
        ),
    ],
    ids=["detrex", "groundingdino"],
)
def test_attention_of_an_installed_package_runs_the_operator(module, arguments, tmp_path, monkeypatch, rng):
    *folders, name = module.split(".")
    folder = tmp_path
    for part in folders:
        folder = folder / part
        folder.mkdir()
        (folder / "__init__.py").touch()
    (folder / f"{name}.py").write_text(ATTENTION.format(package=folders[0]))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        detrex.install(*arguments)
        attention = importlib.import_module(module)
        sample(attention, rng)
        detrex.uninstall()
        assert f"{folders[0]}._C" not in sys.modules
        with pytest.raises(AssertionError, match="the slow one was called"):
            sample(attention, rng)
    finally:
        detrex.uninstall()
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == folders[0]]:
            del sys.modules[loaded]


def test_missing_detrex_is_said():
    with pytest.raises(ModuleNotFoundError, match="detrex is not installed"):
        detrex.install()
