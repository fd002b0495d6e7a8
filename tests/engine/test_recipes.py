"""The settings that models were published with."""

import re
from pathlib import Path

import pytest

from deformdetr.config import PRESETS, DETRConfig, preset
from deformdetr.engine import CosineSchedule, Experiment, StepSchedule, TrainConfig, read_experiment, recipe

SHAPES = {"kind": "shapes"}
PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def settings_of(config):
    rates = config.lr, config.lr * config.lr_backbone_multiplier, config.lr * config.lr_sampling_multiplier
    return (*(round(rate, 12) for rate in rates), config.epochs, config.schedule.drop_epochs)


# Read from the published implementations' main.py and DINO_4scale.py.
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("deformable_detr_r50.*", (2e-4, 2e-5, 2e-5, 50, (40,))),
        ("dn_deformable_detr_r50", (1e-4, 1e-5, 1e-4, 50, (40,))),
        ("dino_r50_4scale", (1e-4, 1e-5, 1e-4, 12, (11,))),
        ("detr_r(50|101)(_dc5|_panoptic)?", (1e-4, 1e-5, 1e-4, 300, (200,))),
        ("detr_r50_dc5_plus", (1e-4, 1e-5, 1e-4, 50, (40,))),
    ],
)
def test_presets_train_as_published(pattern, expected):
    names = [name for name in PRESETS if re.fullmatch(pattern, name)]
    assert names
    for name in names:
        for model in ({"preset": name}, preset(name)):
            train = Experiment(model=model, data=SHAPES).train
            assert settings_of(train) == expected, name
            assert (train.weight_decay, train.max_grad_norm, train.batch_size) == (1e-4, 0.1, 2)


def test_given_settings_take_precedence_over_the_recipe(tmp_path):
    given = {"epochs": 24, "schedule": {"drop_epochs": [20]}}
    expected = recipe(preset("dino_r50_4scale")).replace(epochs=24, schedule=StepSchedule(drop_epochs=(20,)))
    model = {"preset": "dino_r50_4scale"}
    assert Experiment(model=model, data=SHAPES, train=given).train == expected
    given_as_object = TrainConfig(epochs=24, schedule=StepSchedule(drop_epochs=(20,)))
    assert Experiment(model=model, data=SHAPES, train=given_as_object).train == expected
    file = tmp_path / "config.json"
    file.write_text('{"model": {"preset": "dino_r50_4scale"}, "data": {"kind": "shapes"}}')
    overrides = {"train": {"epochs": "24", "schedule": {"drop_epochs": [20]}}}
    assert read_experiment(file, overrides).train == expected


def test_schedule_of_another_kind_replaces_that_of_the_recipe():
    for schedule in ({"kind": "cosine"}, CosineSchedule()):
        train = Experiment(model={"kind": "detr"}, data=SHAPES, train={"schedule": schedule}).train
        assert train.schedule == CosineSchedule()
        assert train.lr == 1e-4


def test_recipe_follows_the_kind_and_the_parts_of_a_model():
    assert recipe(DETRConfig(num_queries=7)) == recipe(preset("detr_r50"))
    without_denoising = preset("dino_r50_4scale").replace(denoising=None, num_queries=9)
    assert recipe(without_denoising) == recipe(preset("dino_r50_4scale"))


def test_complete_settings_survive_another_model():
    experiment = Experiment(model={"preset": "detr_r50"}, data=SHAPES, train={"lr": 3e-4})
    saved = Experiment.model_validate(experiment.model_dump(mode="json"))
    assert saved.train == experiment.train
    assert saved.replace(model=preset("dino_r50_4scale")).train == experiment.train


def test_invalid_settings_are_still_named():
    with pytest.raises(ValueError, match=r"train\n  Input should be a valid dictionary"):
        Experiment(model={"kind": "detr"}, data=SHAPES, train=3)
    with pytest.raises(ValueError, match=r"train\.lr\n"):
        Experiment(model={"kind": "detr"}, data=SHAPES, train={"lr": -1})


def test_the_page_has_the_recipe_of_every_preset():
    rows = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", cells[0]):
            if name in PRESETS and len(cells) == 7:
                rows[name] = cells[1:6]
    assert rows.keys() == PRESETS.keys() - {"demo"}
    for name, cells in rows.items():
        *rates, epochs, drops = settings_of(recipe(preset(name)))
        assert [float(cell) for cell in cells[:3]] == rates, name
        assert (int(cells[3]), (int(cells[4]),)) == (epochs, drops), name
