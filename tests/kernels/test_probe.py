"""What decides whether Numba's kernels serve CPUs."""

import importlib.abc
import json
import subprocess
import sys
import warnings

import numba
import pytest
import torch

from deformdetr.kernels import ms_deform_attn
from deformdetr.kernels._numba import _probe

# In a process of its own, which cannot import what is named: a layer and a model train, in threads at first.
TRAIN = """
import importlib.abc, json, sys, threading, warnings

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import torch
from deformdetr import preset
from deformdetr.kernels import ms_deform_attn
from deformdetr.nn import MSDeformAttn

def losses():
    layer = MSDeformAttn(32, 2, 4, 3)
    query, points = torch.randn(2, 7, 32), torch.rand(2, 7, 2, 2)
    features = torch.randn(2, 26, 32, requires_grad=True)
    yield layer(query, points, features, [(4, 5), (2, 3)]).square().mean(), [features, *layer.parameters()]
    config = preset("demo")
    model = config.build().train()
    targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}]
    criterion = config.build_criterion()
    loss = criterion.total(criterion(model(torch.rand(1, 3, 64, 64)), targets))
    yield loss, [parameter for parameter in model.parameters() if parameter.requires_grad]

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    inputs = torch.rand(1, 4, 1, 8), [(2, 2)], torch.rand(1, 3, 1, 1, 2, 2), torch.rand(1, 3, 1, 1, 2)
    threads = [threading.Thread(target=ms_deform_attn, args=inputs) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    are_finite = all(
        gradient.isfinite().all()
        for loss, leaves in losses()
        for gradient in (loss, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    )
print(json.dumps({
    "are_finite": bool(are_finite),
    "messages": [str(warning.message) for warning in caught],
    "loaded": sorted({"numba", "llvmlite"} & set(sys.modules)),
}))
"""

BUILD = """
import sys
from deformdetr import preset
preset("demo").build()
assert not {"numba", "llvmlite"} & set(sys.modules), sorted(sys.modules)
"""


def _python(code: str, *arguments: str) -> str:
    process = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def _attend(channels: int) -> None:
    ms_deform_attn(torch.rand(1, 4, 1, channels), [(2, 2)], torch.rand(1, 3, 1, 1, 2, 2), torch.rand(1, 3, 1, 1, 2))


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was found out, until the end of the test."""
    monkeypatch.setattr(_probe, "_found", [])


class Broken(importlib.abc.MetaPathFinder):
    """Imports of one package raise."""

    def __init__(self, package: str, error: Exception) -> None:
        self.package, self.error = package, error

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == self.package:
            raise self.error


def test_layers_and_models_train_without_numba_and_warn_once_in_all_threads():
    found = json.loads(_python(TRAIN, "numba", "llvmlite"))
    assert found["are_finite"]
    assert not found["loaded"]
    (message,) = found["messages"]
    assert "ModuleNotFoundError: No module named 'numba" in message
    assert "pip install" in message


def test_models_are_built_without_numba_being_imported():
    _python(BUILD)


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("numba", ImportError("Numba needs NumPy 2.3 or less. Got NumPy 2.4.")),
        ("numba", AttributeError("module 'numpy' has no attribute 'long'")),
        ("numba", SystemError("initialization of _internal failed without raising an exception")),
        ("numba", ValueError("numpy.dtype size changed, may indicate binary incompatibility")),
        ("llvmlite", ModuleNotFoundError("No module named 'llvmlite'")),
        ("llvmlite", OSError("Could not find/load shared object file")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_numba_that_cannot_be_imported_is_named_in_the_warning(
    package: str, error: Exception, unknown: None, monkeypatch: pytest.MonkeyPatch
):
    ours = "deformdetr.kernels._numba"
    for name in list(sys.modules):
        if name.partition(".")[0] in ("numba", "llvmlite") or name.startswith(ours):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(package, error), *sys.meta_path])
    with pytest.warns(RuntimeWarning, match="several times as slow") as caught:
        _attend(8)
    assert f"({type(error).__name__}: {error})" in str(caught[0].message)
    with warnings.catch_warnings(action="error"):
        _attend(8)


def test_a_numba_that_cannot_compile_is_named_in_the_warning(unknown: None, monkeypatch: pytest.MonkeyPatch):
    from llvmlite import ir

    # As where a release of llvmlite takes a name away.
    monkeypatch.delattr(ir.IRBuilder, "insert_value")
    # As many channels as no other test has, since what is compiled is kept.
    with pytest.warns(RuntimeWarning, match=r"several times as slow .*insert_value"):
        _attend(14)


def test_a_process_that_compiles_nothing_is_told_so(unknown: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.warns(RuntimeWarning, match="NUMBA_DISABLE_JIT is set"):
        _attend(13)


def test_what_fails_once_kernels_have_been_compiled_is_raised(unknown: None, monkeypatch: pytest.MonkeyPatch):
    _attend(8)
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT is set"):
        _attend(17)


def test_a_warning_that_is_an_error_is_raised_once(unknown: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(RuntimeWarning, match="NUMBA_DISABLE_JIT is set"):
        _attend(19)
    _attend(19)


def test_a_first_value_without_channels_tells_nothing_wrong(unknown: None):
    _attend(0)
    assert _probe._found == [None]
