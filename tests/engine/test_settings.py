"""Merging, comparing and naming settings, and suggestions."""

import pytest
from pydantic import ValidationError

from deformdetr.engine import Experiment, TrainConfig, describe, setting_names, suggest
from deformdetr.engine._settings import differences, merge


def test_names_cover_all_kinds_of_a_part():
    names = set(setting_names(Experiment))
    assert {"model.backbone.name", "model.backbone.channels", "train.schedule.final_factor"} <= names
    assert {"data.train_images", "data.num_train", "data.augment.flip"} <= names
    assert "model" not in names


def test_same_name_in_another_section_is_suggested_first():
    assert suggest("lr", ["train.lr", "train.lrs"]) == "; did you mean train.lr?"


def test_similar_names_are_suggested():
    assert suggest("train.batchsize", ["train.batch_size", "model.top_k"]) == "; did you mean train.batch_size?"


def test_names_of_the_section_are_listed_if_none_is_similar():
    assert suggest("train.zzzzzzzz", ["train.lr", "train.seed", "model.top_k"]) == "; train has lr, seed"


def test_nothing_is_suggested_if_nothing_fits():
    assert suggest("zzz", ["train.lr"]) == ""


def test_merge_replaces_leaves_and_keeps_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [3]}, "e": 4}) == {"a": {"b": 1, "c": [3]}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_settings_of_another_kind_are_replaced_as_a_whole():
    base = {"backbone": {"kind": "resnet", "name": "resnet50"}}
    assert merge(base, {"backbone": {"kind": "conv"}}) == {"backbone": {"kind": "conv"}}
    assert merge(base, {"backbone": {"kind": "resnet", "dilation": True}}) == {
        "backbone": {"kind": "resnet", "name": "resnet50", "dilation": True}
    }


def test_differences_are_named_by_their_path():
    old = {"a": {"b": 1, "c": {}}, "d": [1, 2]}
    new = {"a": {"b": 2, "c": {}}, "d": [1, 2], "e": {"f": 0}}
    assert differences(old, new) == {"a.b": (1, 2), "e.f": (None, 0)}


@pytest.mark.parametrize(
    "settings", [{"model": {"preset": "d" + 9000 * "9" + "emo"}}, {"model": {9000 * "a": 1}}, {9000 * "b": 1}]
)
def test_long_inputs_are_not_repeated_in_messages(settings):
    with pytest.raises(ValidationError) as invalid:
        Experiment.model_validate(settings)
    message = describe(invalid.value, Experiment)
    assert " ... " in message
    assert len(message) < 2000


def test_names_with_line_ends_are_shown_in_one_line():
    with pytest.raises(ValidationError) as invalid:
        TrainConfig.model_validate({"a\nb": 1})
    assert describe(invalid.value, TrainConfig).startswith(r"there is no setting 'a\nb'")


def test_long_lists_of_invalid_settings_are_cut():
    with pytest.raises(ValidationError) as invalid:
        TrainConfig.model_validate({f"unknown{number}": 1 for number in range(500)})
    lines = describe(invalid.value, TrainConfig).splitlines()
    assert lines[0] == "500 settings are not valid:"
    assert len(lines) == 22
    assert lines[-1] == "  and 480 more"
