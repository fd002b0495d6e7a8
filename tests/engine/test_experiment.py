"""Experiments from files: presets, overrides, and messages about invalid settings."""

import json
import math
from functools import reduce

import pytest
import yaml
from pydantic import ValidationError

from deformdetr.config import DeformableDETRConfig, preset
from deformdetr.data import LabelMap, ShapesConfig
from deformdetr.engine import ConfigError, Experiment, TrainConfig, experiment_schema, read_experiment, resolve
from deformdetr.engine._experiment import changes_that_matter
from mutations import nodes

SHAPES = {"kind": "shapes"}


def write(folder, settings, name="config.yaml"):
    path = folder / name
    path.write_text(json.dumps(settings) if name.endswith(".json") else yaml.safe_dump(settings))
    return path


def test_preset_provides_missing_fields():
    model = Experiment.model_validate({"model": {"preset": "demo", "num_queries": 7}, "data": SHAPES}).model
    assert model == preset("demo").replace(num_queries=7, num_classes=91)
    assert "num_classes" not in model.model_fields_set


def test_parts_of_a_preset_can_be_changed_without_repeating_their_kind():
    settings = {"preset": "deformable_detr_r50_single_scale_dc5", "backbone": {"weights": "file.pth"}}
    backbone = Experiment.model_validate({"model": settings, "data": SHAPES}).model.backbone
    assert (backbone.kind, backbone.dilation, backbone.weights) == ("resnet", True, "file.pth")


def test_part_of_another_kind_replaces_that_of_the_preset():
    settings = {"preset": "deformable_detr_r50", "backbone": {"kind": "conv"}}
    assert Experiment.model_validate({"model": settings, "data": SHAPES}).model.backbone.kind == "conv"


def test_model_without_preset_has_the_defaults():
    for settings in ({"data": SHAPES}, {"model": {"backbone": {"name": "resnet18"}}, "data": SHAPES}):
        model = Experiment.model_validate(settings).model
        assert model.replace(backbone=DeformableDETRConfig().backbone) == DeformableDETRConfig()
        assert "num_classes" not in model.model_fields_set


def test_overrides_take_precedence_over_the_file(tmp_path):
    path = write(tmp_path, {"model": {"preset": "demo"}, "data": SHAPES, "train": {"lr": 1e-3, "seed": 5}})
    experiment = read_experiment(path, {"train": {"lr": "1e-2"}, "model": {"num_queries": "12"}})
    assert experiment.train == TrainConfig(lr=1e-2, seed=5)
    assert experiment.model.num_queries == 12


def test_json_and_yaml_files_give_the_same_experiment(tmp_path):
    settings = {"model": {"preset": "demo"}, "data": SHAPES, "train": {"schedule": {"drop_epochs": [3]}}}
    read = read_experiment(write(tmp_path, settings, "config.json"))
    assert read == read_experiment(write(tmp_path, settings))
    assert read.train.schedule.drop_epochs == (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "is not valid YAML"),
        ("just words", "must hold a mapping of fields, got a str: 'just words'"),
        ("", "the setting 'data' is missing"),
        ("# a comment alone\n", "the setting 'data' is missing"),
    ],
)
def test_file_without_settings_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        read_experiment(path)
    assert str(path) in str(refused.value)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nothing\.yaml"):
        read_experiment(tmp_path / "nothing.yaml")


def test_all_invalid_settings_are_named_with_suggestions(tmp_path):
    settings = {
        "model": {"preset": "demo", "num_querries": 3, "backbone": {"chanels": [8, 8, 8, 8]}},
        "data": {"kind": "shapes", "num_val": 0},
        "train": {"lr": "fast", "num_queries": 4, "schedule": {"kind": "step", "drop_epochs": [0]}},
    }
    with pytest.raises(ConfigError) as refused:
        read_experiment(write(tmp_path, settings))
    message = str(refused.value)
    assert "6 settings are not valid" in message
    assert "no setting 'model.num_querries'; did you mean model.num_queries" in message
    assert "no setting 'model.backbone.chanels'; did you mean model.backbone.channels" in message
    assert "no setting 'train.num_queries'; did you mean model.num_queries?" in message
    assert "data.num_val: Input should be greater than or equal to 1, got 0" in message
    assert "train.lr: " in message
    assert "'fast'" in message
    assert "train.schedule.drop_epochs.0: " in message


def test_missing_setting_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"the setting 'data\.train_annotations' is missing"):
        read_experiment(write(tmp_path, {"data": {"train_images": "a", "val_images": "b", "val_annotations": "c"}}))
    with pytest.raises(ConfigError, match="the setting 'data' is missing"):
        read_experiment(write(tmp_path, {}))


def test_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"no preset 'dem'.*deformable_detr_r50"):
        read_experiment(write(tmp_path, {"model": {"preset": "dem"}, "data": SHAPES}))


def test_dataset_decides_the_number_of_classes_unless_it_is_given():
    label_map = LabelMap(names=("a", "b"), category_ids=(3, 9))
    open_model = Experiment.model_validate({"data": SHAPES})
    assert resolve(open_model, label_map).model.num_classes == 2
    given = Experiment(model=preset("demo").replace(num_classes=5), data=ShapesConfig())
    assert resolve(given, label_map).model.num_classes == 5


def test_fewer_classes_than_labels_are_refused():
    label_map = LabelMap(names=("a", "b"), category_ids=(3, 9))
    given = Experiment(model=preset("demo").replace(num_classes=1), data=ShapesConfig())
    with pytest.raises(ConfigError, match=r"num_classes is 1, but the dataset has 2 labels \(a, b\)"):
        resolve(given, label_map)


def test_resolved_experiment_survives_a_file(tmp_path):
    experiment = resolve(
        Experiment.model_validate({"data": SHAPES, "train": {"schedule": {"kind": "cosine"}}}),
        LabelMap(names=("a",), category_ids=(1,)),
    )
    assert read_experiment(write(tmp_path, experiment.model_dump(mode="json"))) == experiment


def test_logging_settings_may_change_on_resume():
    old = Experiment.model_validate({"data": SHAPES})
    watching = {"epochs": 9, "eval_every": 3, "save_every": 2, "log_every": 7}
    new = Experiment.model_validate({"data": SHAPES | {"num_workers": 3}, "train": watching})
    assert changes_that_matter(old, new) == {}
    assert changes_that_matter(old, new.replace(train=TrainConfig(seed=1))) == {"train.seed": (42, 1)}


def test_schema_has_presets_and_all_sections():
    schema = experiment_schema()
    assert schema["properties"].keys() == {"model", "data", "train"}
    assert "demo" in schema["$defs"]["DeformableDETRConfig"]["properties"]["preset"]["enum"]
    json.dumps(schema)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e300, -1e300])
def test_all_numbers_of_an_experiment_are_finite_in_float32(number):
    augment = {"color": {}, "zoom_out": {}}
    train = {"ema": {}, "early_stopping": {}}
    experiment = Experiment.model_validate({"data": SHAPES | {"augment": augment}, "train": train})
    for path in nodes(experiment.model_dump(mode="json")):
        settings = experiment.model_dump(mode="json")
        *parents, last = path
        parent = reduce(lambda value, key: value[key], parents, settings)
        if not isinstance(parent, dict | list) or not isinstance(parent[last], float):
            continue
        parent[last] = number
        (name,) = [each for each in path if isinstance(each, str)][-1:]
        with pytest.raises(ValidationError, match=name):
            Experiment.model_validate(settings)


@pytest.mark.parametrize("name", ["image_mean", "image_std"])
def test_colors_are_finite_and_means_are_colors(name):
    for number in (math.inf, math.nan, *([1.5, -0.1] if name == "image_mean" else [0.0])):
        with pytest.raises(ValidationError, match=name):
            ShapesConfig.model_validate({name: [0.5, number, 0.5]})


def test_messages_about_settings_show_control_characters(tmp_path):
    path = write(tmp_path, {"data": {"kind": "\x1b[31m\0"}}, "config.json")
    with pytest.raises(ConfigError, match=r"Input tag '\\x1b\[31m\\x00' found") as refused:
        read_experiment(path)
    assert str(refused.value).isprintable()
