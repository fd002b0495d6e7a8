"""Parameters with unusual gradients."""

import pytest
import torch
from torch import nn

from deformdetr import preset
from deformdetr.engine import check_gradients


def layers(*names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in names})


def test_unusual_gradients_are_named() -> None:
    model = layers("a", "b", "c", "missing", "zero", "nan", "large", "frozen")
    model["frozen"].requires_grad_(requires_grad=False)
    for name, layer in model.items():
        value = {"zero": 0.0, "nan": float("nan"), "large": 1e3}.get(name, 1.0)
        layer.weight.grad = None if name in ("missing", "frozen") else torch.full((2, 3), value)
    report = check_gradients(model)
    assert report.missing == ["missing.weight"]
    assert report.zero == ["zero.weight"]
    assert report.not_finite == ["nan.weight"]
    assert report.large == {"large.weight": pytest.approx(1e3)}
    assert report.median == pytest.approx(1)
    assert not report.is_clean
    assert len(str(report).splitlines()) == 4
    assert check_gradients(model, large=1001.0).large == {}


def test_a_model_without_a_backward_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 trained parameters has a gradient; call backward first"):
        check_gradients(layers("a", "b"))


def test_every_parameter_of_a_model_is_trained() -> None:
    config = preset("demo")
    model = config.build()
    outputs = model([torch.rand(3, 64, 96)])
    targets = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]]), "labels": torch.tensor([1])}]
    criterion = config.build_criterion()
    criterion.total(criterion(outputs, targets)).backward()
    report = check_gradients(model, large=1e9)
    assert report.missing == report.not_finite == []
    # Without auxiliary losses, the heads of the first layers have no loss.
    model = config.replace(aux_loss=False).build()
    outputs = model([torch.rand(3, 64, 96)])
    criterion.total(criterion(outputs, targets)).backward()
    assert any(name.startswith("class_heads.0") for name in check_gradients(model).missing)
