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
        (AugmentConfig, {"color": {"contrast": (1.5, 0.5)}}, r"color\.contrast .* got 1\.5 and 0\.5"),
        (AugmentConfig, {"color": {"hue": 0.6}}, "hue"),
        (AugmentConfig, {"zoom_out": {"max_side": 0.5}}, "max_side"),
        (DataConfig, FILES | {"eval_short_side": 900, "eval_max_size": 800}, r"\(800\).*\(900\)"),
        (DataConfig, FILES | {"image_std": (1, 1, 1e-46)}, "image_std"),
        (DataConfig, FILES | {"trian_images": "x"}, "trian_images"),
        (ShapesConfig, {"min_objects": 6, "max_objects": 5}, r"\(6\).*\(5\)"),
        (ShapesConfig, {"min_size": 0.5, "max_size": 0.4}, r"\(0.5\).*\(0.4\)"),
        (ShapesConfig, {"image_size": 40}, "4.0 pixels"),
    ],
)
def test_contradictory_fields_are_refused(kind: Any, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        kind(**fields)


def test_paths_are_accepted() -> None:
    assert DataConfig(**FILES | {"val_images": Path("x")}).val_images == Path("x")
