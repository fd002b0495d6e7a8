"""The moving average of weights."""

import pytest
import torch
from torch import nn

from deformdetr.engine import EMAConfig
from deformdetr.engine._ema import WeightAverage


def step(model, rng):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=rng)


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.999])
def test_average_follows_its_formula(decay, rng):
    model = nn.Linear(3, 2)
    average = WeightAverage(model, EMAConfig(decay=decay))
    expected = None
    for number in range(5):
        step(model, rng)
        average.update(model)
        kept = min(decay, (1 + number) / (10 + number))
        weight = model.weight.detach().clone()
        expected = weight if expected is None else kept * expected + (1 - kept) * weight
        torch.testing.assert_close(average.module.weight, expected)


def test_initial_weights_are_forgotten(rng):
    model = nn.Linear(3, 2)
    average = WeightAverage(model, EMAConfig(decay=0.9997))
    before = average.module.weight.clone()
    with torch.no_grad():
        model.weight += 100
    for _ in range(50):
        average.update(model)
    torch.testing.assert_close(average.module.weight, before + 100)


def test_buffers_are_those_of_the_model_and_modules_are_its_own(rng):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, EMAConfig())
    model(torch.randn(8, 3, generator=rng))
    step(model, rng)
    average.update(model)
    step(model, rng)
    average.update(model)
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)
    assert average.module[1].num_batches_tracked == 1
    assert not torch.equal(average.module[0].weight, model[0].weight)
    assert not average.module.training
    assert model.training


def test_resumed_average_equals_an_uninterrupted_one(rng):
    model = nn.Linear(3, 2)
    whole = WeightAverage(model, EMAConfig(decay=0.3))
    for _ in range(3):
        step(model, rng)
        whole.update(model)
    resumed = WeightAverage(whole.module, EMAConfig(decay=0.3))
    resumed.resume(3)
    for _ in range(2):
        step(model, rng)
        whole.update(model)
        resumed.update(model)
    assert torch.equal(resumed.module.weight, whole.module.weight)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMAConfig(decay=decay)
