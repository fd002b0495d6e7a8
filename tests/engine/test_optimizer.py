"""Parameter groups of the original."""

import pytest
import torch
from torch import nn

from deformdetr.config import preset
from deformdetr.engine import build_optimizer, parameter_groups
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
