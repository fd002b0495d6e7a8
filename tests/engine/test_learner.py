"""Single steps: accumulation and clipping."""

import pytest
import torch

from deformdetr.data import build_dataset, collate
from deformdetr.engine import ConfigError, Experiment, Processes
from deformdetr.engine._learner import Learner
from deformdetr.models import needs_targets
from experiments import SETTINGS, tiny_experiment


@pytest.fixture(scope="module")
def samples():
    """Return images with different numbers of boxes, one of them without any."""
    return images_with(1, 4, 0, 2)


def images_with(*counts):
    """Return an image for every number of boxes."""
    dataset = build_dataset(tiny_experiment().data.replace(min_objects=0, num_train=40), "train", masks=True)
    by_count = {}
    for index in range(len(dataset)):
        by_count.setdefault(len(dataset[index][1]["labels"]), []).append(dataset[index])
    return [by_count[count].pop() for count in counts]


def learner_of(model, **settings):
    experiment = tiny_experiment(**settings)
    return Learner(model, experiment.model.build_criterion(), experiment.train, Processes())


@pytest.mark.parametrize(
    "model",
    [{}, {"masks": True}, {"preset": "detr_r50"}, {"preset": "detr_r50", "num_queries": 3}],
    ids=["focal", "masks", "softmax", "softmax with fewer queries than targets"],
)
@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 1, 1)])
def test_accumulated_batches_give_the_gradient_and_losses_of_one_large_batch(samples, model, sizes):
    parts = torch.tensor(sizes).cumsum(0).tolist()
    assert_adds_up(small_experiment(model), [samples[end - size : end] for size, end in zip(sizes, parts, strict=True)])


@pytest.mark.parametrize(
    "denoising",
    [{"kind": "dn", "label_noise_scale": 0.0}, {"kind": "cdn", "label_noise_ratio": 0.0, "dn_number": 8}],
    ids=["dn", "cdn"],
)
def test_denoising_losses_of_accumulated_batches_add_up(denoising):
    # Other batches have other noise, and groups as long as their largest number of boxes: neither differs here.
    model = {"anchor_queries": True, "query_selection": "mixed", "denoising": denoising | {"box_noise_scale": 0.0}}
    samples = images_with(4, 1, 4, 0)
    assert_adds_up(small_experiment(model), [samples[:2], samples[2:]])


def assert_adds_up(experiment, groups):
    """Compare the gradient and the losses of accumulated batches with those of one batch of all images."""
    network, criterion = experiment.model.build(), experiment.model.build_criterion()
    learner = Learner(network, criterion, experiment.train, Processes())
    whole = learner.learn([collate([sample for group in groups for sample in group])], step=1)
    expected = gradients_of(network)
    batches = [collate(group) for group in groups]
    accumulated = learner.learn(batches, step=1)
    for name in (name for name in whole if name.startswith("loss")):
        assert accumulated[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name
    assert difference(gradients_of(network), expected) < 1e-3

    # The average of the batches' own losses has another gradient, which this comparison can tell from it.
    for images, targets in batches:
        arguments = {"targets": targets} if needs_targets(network) else {}
        outputs = network(images.images, images.padding_mask, **arguments)
        (criterion.total(criterion(outputs, targets)) / len(batches)).backward()
    assert difference(gradients_of(network), expected) > 0.02


def small_experiment(model):
    small = SETTINGS["model"] | {"dropout": 0.0} | model
    if model.get("preset") == "detr_r50":
        own = {"num_queries", "d_model", "n_heads", "d_ffn", "num_encoder_layers", "backbone", "preset", "dropout"}
        small = {name: value for name, value in small.items() if name in own}
        small |= {"num_decoder_layers": 2, "backbone": {"kind": "conv", "channels": [8, 8, 8, 16]}}
    return Experiment.model_validate(SETTINGS | {"model": small | {"num_classes": 3}})


def gradients_of(model):
    """Return the gradients of all parameters as one vector, and clear them."""
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(gradients)


def difference(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("limit", [1e-3, None])
def test_gradient_is_clipped_to_its_limit(samples, limit, monkeypatch):
    model = tiny_experiment().model.build()
    learner = learner_of(model, max_grad_norm=limit)
    learner.learn([collate(samples)], step=1)
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
    learner.learn([collate(samples)], step=1)
    learner.step(0.5)
    assert learner.learning_rates() == pytest.approx({"main": 5e-4, "backbone": 5e-4, "sampling": 5e-5})


def test_batch_without_any_object_can_be_learned_from(samples):
    model = tiny_experiment().model.build()
    learner = learner_of(model)
    images, targets = collate(samples)
    empty = [target | {"boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets]
    values = learner.learn([(images, empty)], step=1)
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
    learner.learn([collate(samples)], step=1)
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
