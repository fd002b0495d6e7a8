"""The table of accelerated models of transformers, and the measurement that it comes from."""

import json

import pytest
import torch
from benchmarks import transformers_speed
from benchmarks.pages import generated_part
from torch import Tensor, nn

from deformdetr.integrations.transformers import Acceleration


def test_page_is_that_of_the_stored_results():
    results = json.loads(transformers_speed.STORED.read_text())
    assert generated_part(transformers_speed.PAGE) == transformers_speed.table(results)


@pytest.mark.parametrize("backward", [False, True])
def test_rounds_take_turns_between_the_model_and_the_accelerated_one(backward: bool, monkeypatch):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.gradients = 0
            self.weight.register_hook(self.count)

        def count(self, grad: Tensor) -> None:
            self.gradients += 1

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            calls.append("run")
            return {"logits": images * self.weight}

    class Noted(Acceleration):
        def __enter__(self) -> Acceleration:
            calls.append("accelerate")
            return self

    calls: list[str] = []
    monkeypatch.setattr(transformers_speed, "accelerate", lambda model: Noted())
    model = Model()
    measured = transformers_speed.measure(model, torch.ones(2), backward=backward, rounds=2)
    assert calls == ["run", "accelerate", "run"] * 3
    assert model.gradients == (6 if backward else 0)
    assert measured.keys() == {"seconds", "seconds_accelerated", "speed_up"}
