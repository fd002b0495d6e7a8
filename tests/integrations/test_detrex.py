"""The operator in detrex and in packages of its layout."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from deformdetr.integrations import detrex
from deformdetr.kernels import ms_deform_attn

SHAPES = torch.tensor([[4, 6], [3, 2]])
STARTS = torch.tensor([0, 24])

# What the module of either package has: the functions, and a layer that calls one of them.
ATTENTION = """
import torch


class MultiScaleDeformableAttnFunction:
    def apply(*arguments):
        return _C.ms_deform_attn_forward(*arguments)


def multi_scale_deformable_attn_pytorch(value, shapes, locations, weights):
    raise AssertionError("the slow one was called")


class MultiScaleDeformableAttention(torch.nn.Module):
    def forward(self, value, shapes, starts, locations, weights):
        return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
"""
# detrex asks for its extension last, and without it has a placeholder for the layer.
ASKED_FOR_LAST = """

try:
    from detrex import _C
except ImportError:

    class Placeholder(type):
        def __getattr__(cls, name):
            raise ImportError("detrex is not compiled")

    class MultiScaleDeformableAttention(metaclass=Placeholder):
        def __init__(self):
            raise ImportError("detrex is not compiled")
"""
# Grounding DINO asks for its extension first, and goes on without it.
ASKED_FOR_FIRST = """
try:
    from groundingdino import _C
except:
    pass

"""
OTHER_OPERATOR = """
try:
    from detrex import _C
except ImportError:
    _C = None


def dcnv3(tensor):
    return _C.dcnv3_forward(tensor)
"""
BY_NAME = "from .multi_scale_deform_attn import MultiScaleDeformableAttention, multi_scale_deformable_attn_pytorch\n"
DETREX = {
    "detrex/__init__.py": "from detrex import layers\n",
    "detrex/layers/__init__.py": f"{BY_NAME}from .dcn_v3 import dcnv3\n",
    "detrex/layers/multi_scale_deform_attn.py": ATTENTION + ASKED_FOR_LAST,
    "detrex/layers/dcn_v3.py": OTHER_OPERATOR,
}
GROUNDING_DINO = {
    "groundingdino/__init__.py": "",
    "groundingdino/models/__init__.py": "from .GroundingDINO import transformer\n",
    "groundingdino/models/GroundingDINO/__init__.py": "",
    "groundingdino/models/GroundingDINO/transformer.py": BY_NAME.replace(
        "multi_scale_deform_attn", "ms_deform_attn", 1
    ),
    "groundingdino/models/GroundingDINO/ms_deform_attn.py": ASKED_FOR_FIRST + ATTENTION,
}
MODULE_OF_DETREX = "detrex.layers.multi_scale_deform_attn"
MODULE_OF_GROUNDING_DINO = "groundingdino.models.GroundingDINO.ms_deform_attn"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put packages with the files of both where they can be imported, without their compiled operators."""
    for name, source in (DETREX | GROUNDING_DINO).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    detrex.uninstall()
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] in {"detrex", "groundingdino"}]:
        del sys.modules[loaded]


def _install(module: str) -> None:
    if module == MODULE_OF_DETREX:
        detrex.install()
    else:
        detrex.install(module)


def sample(attention, rng: torch.Generator) -> None:
    """Call a module of this layout in all of its ways, and compare."""
    value = torch.randn(2, 30, 2, 4, generator=rng)
    locations = torch.rand(2, 5, 2, 2, 2, 2, generator=rng)
    weights = torch.rand(2, 5, 2, 2, 2, generator=rng)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    function = attention.MultiScaleDeformableAttnFunction
    torch.testing.assert_close(function.apply(value, SHAPES, STARTS, locations, weights, 64), expected)
    by_name = attention.multi_scale_deformable_attn_pytorch
    torch.testing.assert_close(by_name(value, SHAPES, locations, weights), expected)
    layer = attention.MultiScaleDeformableAttention()
    torch.testing.assert_close(layer(value, SHAPES, STARTS, locations, weights), expected)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("module", [MODULE_OF_DETREX, MODULE_OF_GROUNDING_DINO])
def test_attention_of_an_installed_package_runs_the_operator(module, rng):
    _install(module)
    sample(importlib.import_module(module), rng)
    detrex.uninstall()
    assert f"{module.partition('.')[0]}._C" not in sys.modules
    with pytest.raises(AssertionError, match="the slow one was called"):
        sample(importlib.import_module(module), rng)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("module", "holder"),
    [
        (MODULE_OF_DETREX, "detrex.layers"),
        (MODULE_OF_GROUNDING_DINO, "groundingdino.models.GroundingDINO.transformer"),
    ],
)
def test_modules_that_took_the_functions_by_name_have_the_operator_too(module, holder, rng):
    _install(module)
    held, attention = importlib.import_module(holder), importlib.import_module(module)
    assert held.MultiScaleDeformableAttention is attention.MultiScaleDeformableAttention
    assert held.multi_scale_deformable_attn_pytorch is detrex.multi_scale_deformable_attn_pytorch
    detrex.uninstall()
    assert held.multi_scale_deformable_attn_pytorch is attention.multi_scale_deformable_attn_pytorch
    with pytest.raises(AssertionError, match="the slow one was called"):
        held.multi_scale_deformable_attn_pytorch(None, None, None, None)


@pytest.mark.usefixtures("packages")
def test_package_that_goes_on_without_its_extension_may_be_imported_first(rng):
    attention = importlib.import_module(MODULE_OF_GROUNDING_DINO)
    detrex.install(MODULE_OF_GROUNDING_DINO)
    sample(attention, rng)


@pytest.mark.usefixtures("packages")
def test_package_with_a_placeholder_layer_raises_and_is_unchanged():
    attention = importlib.import_module(MODULE_OF_DETREX)
    before = dict(vars(attention))
    with pytest.raises(RuntimeError, match=r"placeholder since: install before the first import of detrex"):
        detrex.install()
    assert vars(attention) == before
    assert "detrex._C" not in sys.modules


def test_compiled_extension_that_does_not_load_raises(packages):
    (packages / "detrex" / "_C.py").write_text("raise ImportError('undefined symbol')\n")
    with pytest.raises(RuntimeError, match=r"and remove a compiled detrex\._C that does not load"):
        detrex.install()


@pytest.mark.usefixtures("packages")
def test_other_operators_of_a_missing_extension_refuse_to_run():
    detrex.install()
    with pytest.raises(NotImplementedError, match="dcnv3_forward of detrex is not compiled"):
        importlib.import_module("detrex.layers").dcnv3(None)


def test_compiled_extension_stays_where_there_is_one(packages, rng):
    (packages / "detrex" / "_C.py").write_text("ms_deform_attn_forward = dcnv3_forward = print\n")
    detrex.install()
    assert importlib.import_module("detrex._C").dcnv3_forward is print
    sample(importlib.import_module(MODULE_OF_DETREX), rng)


@pytest.mark.usefixtures("packages")
def test_module_without_the_functions_raises_and_is_unchanged():
    with pytest.raises(ValueError, match=r"detrex\.layers\.dcn_v3 has neither MultiScaleDeformableAttnFunction nor"):
        detrex.install("detrex.layers.dcn_v3")
    assert "detrex._C" not in sys.modules


def test_modules_that_load_at_first_use_are_not_loaded(packages, monkeypatch):
    (packages / "not_used_yet.py").write_text("raise AssertionError('it was loaded')\n")
    spec = importlib.util.find_spec("not_used_yet")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "not_used_yet", lazy)
    spec.loader.exec_module(lazy)
    detrex.install()
    with pytest.raises(AssertionError, match="it was loaded"):
        lazy.anything  # noqa: B018 - reading it is the test.


def test_missing_detrex_is_said():
    with pytest.raises(ModuleNotFoundError, match="detrex is not installed"):
        detrex.install()
