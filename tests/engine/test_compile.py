"""Training of a compiled model."""

import pytest
from torch import nn

from deformdetr.engine import load_run
from experiments import tiny_run

pytestmark = [pytest.mark.compile, pytest.mark.slow]


def test_a_compiled_model_trains_as_any_other(tmp_path, monkeypatch):
    compiled, compile_module = [], nn.Module.compile

    def compile_without_code(module):
        # All of torch.compile but its code generator, which takes a minute.
        compiled.append(module)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_without_code)
    _, expected = load_run(tiny_run(tmp_path / "plain", epochs=1), prefer=["last.pt"])
    assert not compiled
    _, found = load_run(tiny_run(tmp_path / "compiled", epochs=1, compile=True), prefer=["last.pt"])
    assert len(compiled) == 1
    assert list(found.model) == list(expected.model)
    for name, weights in expected.model.items():
        assert (found.model[name] - weights).abs().max() < 1e-4, name
