import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from deformdetr.data import AnyDataConfig, AugmentConfig, DataConfig, LabelMap, ShapesConfig

FILES = {
    "train_images": "$DATA/images",
    "train_annotations": "~/train.json",
    "val_images": "images",
    "val_annotations": "${DATA}/val.json",
}


def test_labels_follow_rising_category_ids() -> None:
    label_map = LabelMap.contiguous({20: "dog", -3: "fish", 4: "cat"})
    assert label_map.names == ("fish", "cat", "dog")
    assert label_map.category_ids == (-3, 4, 20)
    assert label_map.labels() == {-3: 0, 4: 1, 20: 2}
    assert label_map.num_classes == 3


def test_sparse_labels_equal_their_category_ids() -> None:
    label_map = LabelMap.sparse({1: "person", 3: "car"})
    assert label_map.names == ("N/A", "person", "N/A", "car")
    assert label_map.labels()[3] == 3
    with pytest.raises(ValueError, match="-2"):
        LabelMap.sparse({-2: "fish"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"names": ("a", "b"), "category_ids": (1,)}, "2 names for 1"),
        ({"names": ("a", "b", "c"), "category_ids": (5, 1, 5)}, r"more than once: \[5\]"),
        ({"names": (), "category_ids": ()}, "at least 1"),
    ],
)
def test_label_maps_that_contradict_themselves_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        LabelMap(**fields)


@pytest.mark.parametrize("config", [DataConfig(**FILES), ShapesConfig(num_train=3, min_size=0.2)])
def test_configs_survive_yaml_and_json(config: DataConfig | ShapesConfig) -> None:
    adapter = TypeAdapter[DataConfig | ShapesConfig](AnyDataConfig)
    fields = config.model_dump(mode="json")
    assert adapter.validate_python(yaml.safe_load(yaml.safe_dump(fields))) == config
    assert adapter.validate_json(json.dumps(fields)) == config


def test_a_saved_config_keeps_paths_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/somewhere")
    fields = DataConfig(**FILES).model_dump(mode="json")
    assert {name: fields[name] for name in FILES} == FILES


def test_a_label_map_survives_in_a_config() -> None:
    label_map = LabelMap.contiguous({7: "x", 9: "y"})
    config = DataConfig(**FILES).replace(label_map=label_map)
    assert DataConfig.model_validate_json(config.model_dump_json()).label_map == label_map


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (AugmentConfig, {"short_sides": (480, 800), "max_size": 700}, r"max_size \(700\).*\(800\)"),
        (AugmentConfig, {"crop_min": 10, "crop_max": 9}, r"crop_min \(10\).*\(9\)"),
        (AugmentConfig, {"flip": 1.5}, "flip"),
        (DataConfig, FILES | {"eval_short_side": 900, "eval_max_size": 800}, r"\(800\).*\(900\)"),
        (DataConfig, FILES | {"image_std": (1, 1, 0)}, "greater than 0"),
        (DataConfig, FILES | {"trian_images": "x"}, "trian_images"),
        (ShapesConfig, {"min_objects": 6, "max_objects": 5}, r"\(6\).*\(5\)"),
        (ShapesConfig, {"min_size": 0.5, "max_size": 0.4}, r"\(0.5\).*\(0.4\)"),
        (ShapesConfig, {"image_size": 40}, "4.0 pixels"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(kind: Any, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        kind(**fields)


def test_sequences_of_paths_are_paths() -> None:
    assert DataConfig(**FILES | {"val_images": Path("x")}).val_images == Path("x")
