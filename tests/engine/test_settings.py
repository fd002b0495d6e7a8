"""Names of settings and suggestions."""

from deformdetr.engine import Experiment, setting_names, suggest


def test_names_cover_all_kinds_of_a_part():
    names = set(setting_names(Experiment))
    assert {"model.backbone.name", "model.backbone.channels", "train.schedule.final_factor"} <= names
    assert {"data.train_images", "data.num_train", "data.augment.flip"} <= names
    assert "model" not in names


def test_same_name_in_another_section_is_suggested_first():
    assert suggest("lr", ["train.lr", "train.lrs"]) == "; did you mean train.lr?"


def test_similar_names_are_suggested():
    assert suggest("train.batchsize", ["train.batch_size", "model.top_k"]) == "; did you mean train.batch_size?"


def test_names_of_the_section_are_listed_where_none_is_similar():
    assert suggest("train.zzzzzzzz", ["train.lr", "train.seed", "model.top_k"]) == "; train has lr, seed"


def test_nothing_is_suggested_where_nothing_fits():
    assert suggest("zzz", ["train.lr"]) == ""
