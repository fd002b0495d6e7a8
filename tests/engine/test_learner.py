"""Single steps: accumulation and clipping."""

import pytest
import torch

from deformdetr.data import build_dataset, collate
from deformdetr.engine import ConfigError, Processes
from deformdetr.engine._learner import Learner
from experiments import tiny_experiment


@pytest.fixture(scope="module")
def samples():
    # All images have two boxes, so that half batches are normalized as whole ones.
    dataset = build_dataset(tiny_experiment().data.replace(min_objects=2, max_objects=2, max_size=0.3), "train")
    found = [dataset[index] for index in range(len(dataset))]
    return [sample for sample in found if len(sample[1]["labels"]) == 2][:4]


def learner_of(model, **settings):
    experiment = tiny_experiment(**settings)
    return Learner(model, experiment.model.build_criterion(), experiment.train, Processes())


def test_accumulated_half_batches_give_the_gradient_of_the_whole_batch(samples):
    model = tiny_experiment().model.build()
    learner = learner_of(model)
    learner.learn(*collate(samples), step=1, group_size=1, is_last=True)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for half, is_last in ((samples[:2], False), (samples[2:], True)):
        learner.learn(*collate(half), step=1, group_size=2, is_last=is_last)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("limit", [1e-3, None])
def test_gradient_is_clipped_to_its_limit(samples, limit, monkeypatch):
    model = tiny_experiment().model.build()
    learner = learner_of(model, max_grad_norm=limit)
    learner.learn(*collate(samples), step=1, group_size=1, is_last=True)
    norms = []

    def record(self, closure=None):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    learner.step(1.0)
    if limit is None:
        assert norms[0] > 0.1
    else:
        assert norms[0] == pytest.approx(limit, rel=1e-3)


def test_learning_rates_follow_the_factor(samples):
    learner = learner_of(tiny_experiment().model.build())
    learner.learn(*collate(samples), step=1, group_size=1, is_last=True)
    learner.step(0.5)
    assert learner.learning_rates() == pytest.approx({"main": 5e-4, "backbone": 5e-4, "sampling": 5e-5})


def test_batch_without_any_object_can_be_learned_from(samples):
    model = tiny_experiment().model.build()
    learner = learner_of(model)
    images, targets = collate(samples)
    empty = [target | {"boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets]
    values = learner.learn(images, empty, step=1, group_size=1, is_last=True)
    assert values["loss_bbox"] == 0
    assert values["loss"] > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_frozen_modules_get_no_gradient_and_stay_in_evaluation_mode(samples):
    model = tiny_experiment().model.build()
    learner = learner_of(model, trainable=["decoder.layers.1", "class_heads"])
    learner.start_epoch()
    parts = ("decoder.layers.1", "class_heads")
    assert model.training
    assert model.decoder.training
    for name, module in model.named_modules():
        is_around = any(part.startswith(f"{name}." if name else "") for part in parts)
        assert module.training == (is_around or name.startswith(parts)), name
    learner.learn(*collate(samples), step=1, group_size=1, is_last=True)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(parts), name
        assert (parameter.grad is not None) == name.startswith(parts), name


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("mask_heads", "train.trainable: the model has no part 'mask_heads'; its parts are backbone, "),
        ("", "train.trainable: the model has no part ''"),
        ("position", "train.trainable: 'position' has no trainable parameter"),
    ],
)
def test_parts_that_cannot_train_are_refused(part, message):
    with pytest.raises(ConfigError, match=message):
        learner_of(tiny_experiment().model.build(), trainable=[part])
