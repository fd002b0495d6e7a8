"""Parameter groups of the original, and learning rates over the steps of a run."""

import pytest
import torch
from torch import nn

from deformdetr.config import preset
from deformdetr.engine import (
    CosineSchedule,
    StepSchedule,
    TrainConfig,
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
)
from experiments import tiny_experiment


def groups_of(model, **settings):
    return {group["name"]: group for group in parameter_groups(model, lr=2e-4, **settings)}


@pytest.fixture(scope="module")
def base_model():
    with torch.device("meta"):
        return preset("deformable_detr_r50").build()


def test_parameter_groups_are_as_large_as_the_originals(base_model):
    counts = {name: len(group["params"]) for name, group in groups_of(base_model).items()}
    assert counts == {"main": 230, "backbone": 42, "sampling": 26}


def test_learning_rates_of_groups_equal_those_of_the_original(base_model):
    rates = {name: group["lr"] for name, group in groups_of(base_model).items()}
    assert rates == pytest.approx({"main": 2e-4, "backbone": 2e-5, "sampling": 2e-5})
    other = groups_of(base_model, lr_backbone_multiplier=1.0, lr_sampling_multiplier=0.5)
    assert {name: group["lr"] for name, group in other.items()} == pytest.approx(
        {"main": 2e-4, "backbone": 2e-4, "sampling": 1e-4}
    )


def test_every_trainable_parameter_is_in_exactly_one_group(base_model):
    ids = [id(parameter) for group in groups_of(base_model).values() for parameter in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in base_model.parameters() if parameter.requires_grad}
    assert len(ids) < len(list(base_model.parameters()))


def test_sampling_group_holds_offsets_and_reference_points(base_model):
    names = {id(parameter): name for name, parameter in base_model.named_parameters()}
    sampling = {names[id(parameter)] for parameter in groups_of(base_model)["sampling"]["params"]}
    assert "decoder.layers.5.cross_attn.sampling_offsets.weight" in sampling
    assert "encoder.layers.0.self_attn.sampling_offsets.bias" in sampling
    assert "queries.reference_points.weight" in sampling
    assert not any("attention_weights" in name for name in sampling)


def test_frozen_backbone_has_no_group():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2).requires_grad_(False), "head": nn.Linear(2, 2)})
    assert groups_of(model).keys() == {"main"}


def test_weight_decay_applies_to_all_groups():
    experiment = tiny_experiment(weight_decay=0.125)
    optimizer = build_optimizer(experiment.model.build(), experiment.train)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125] * 3


def factors(config, steps, *, steps_per_epoch=10, total_steps=500):
    return [
        learning_rate_factor(config, step, steps_per_epoch=steps_per_epoch, total_steps=total_steps) for step in steps
    ]


def test_default_drops_to_a_tenth_after_forty_epochs():
    assert factors(TrainConfig(), [0, 399, 400, 499]) == pytest.approx([1, 1, 0.1, 0.1])


def test_several_drops_multiply():
    config = TrainConfig(schedule=StepSchedule(drop_epochs=(2, 3), drop_factor=0.5))
    assert factors(config, [19, 20, 29, 30]) == pytest.approx([1, 0.5, 0.5, 0.25])


def test_cosine_falls_from_one_to_its_final_factor():
    config = TrainConfig(schedule=CosineSchedule(final_factor=0.2))
    values = factors(config, range(501), total_steps=501)
    assert values[0] == 1
    assert values[250] == pytest.approx(0.6)
    assert values[500] == pytest.approx(0.2)
    assert values == sorted(values, reverse=True)


def test_warmup_rises_in_equal_steps_and_never_starts_at_zero():
    assert factors(TrainConfig(warmup_steps=4), range(6)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
