"""Measurement of accelerated models of transformers."""

import pytest
import torch
from benchmarks import transformers_speed
from torch import Tensor, nn

from deformdetr.integrations.transformers import Acceleration


class Model(nn.Module):
    """Counts its calls and its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = self.gradients = 0
        self.weight.register_hook(self.count)

    def count(self, grad: Tensor) -> None:
        self.gradients += 1

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"logits": images * self.weight}


@pytest.mark.parametrize("backward", [False, True])
def test_every_round_runs_the_model_and_the_accelerated_model(backward: bool, monkeypatch):
    accelerated = []
    monkeypatch.setattr(transformers_speed, "accelerate", lambda model: accelerated.append(model) or Acceleration())
    model = Model()
    measured = transformers_speed.measure(model, torch.ones(2), backward=backward, rounds=2)
    # Both have a call before.
    assert (model.calls, len(accelerated)) == (6, 3)
    assert model.gradients == (6 if backward else 0)
    assert measured.keys() == {"seconds", "seconds_accelerated", "speed_up"}
