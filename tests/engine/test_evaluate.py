"""Evaluation of models and of runs."""

import json

import pytest

from deformdetr.data import DatasetError, build_dataset, write_shapes
from deformdetr.engine import ConfigError, Processes, RunError, evaluate, evaluate_run, load_run
from experiments import tiny_experiment
from oracle import Oracle


def test_perfect_predictions_have_a_precision_of_one_at_any_batch_size():
    experiment = tiny_experiment()
    dataset = build_dataset(experiment.data.replace(num_val=7), "val")
    for batch_size in (1, 3, 7):
        model = Oracle(dataset).train()
        found = evaluate(model, experiment.model.build_postprocess(), dataset, Processes(), batch_size=batch_size)
        assert found.metrics["AP"] == pytest.approx(1)
        assert model.training
        assert model.shown == 7


def test_batch_size_does_not_change_metrics(finished_run, tmp_path):
    one = evaluate_run(finished_run, batch_size=1, output=tmp_path / "one.json")
    four = evaluate_run(finished_run, batch_size=4, output=tmp_path / "four.json")
    assert one.metrics == four.metrics


def test_evaluation_repeats_the_metrics_of_training(finished_run, tmp_path):
    found = evaluate_run(finished_run, output=tmp_path / "result.json")
    _, checkpoint = load_run(finished_run)
    assert found.metrics == checkpoint.metrics
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["checkpoint"] == "best.pt"
    assert written["images"] == 5
    assert written["AP50"] == found.metrics["AP50"]
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in found.table
    assert "circle" in found.class_table


def test_another_dataset_of_the_same_categories_can_be_evaluated_on(finished_run, tmp_path):
    files = write_shapes(tiny_experiment().data, tmp_path)
    changes = files.model_dump(mode="json", exclude_unset=True) | {"kind": "coco"}
    found = evaluate_run(finished_run, data_changes=changes, output=tmp_path / "result.json")
    assert found.metrics == evaluate_run(finished_run, output=tmp_path / "expected.json").metrics


def test_dataset_of_other_categories_is_refused(finished_run, tmp_path):
    files = write_shapes(tiny_experiment().data, tmp_path)
    document = json.loads((tmp_path / "val.json").read_text())
    for category in document["categories"]:
        category["name"] += "s"
    (tmp_path / "val.json").write_text(json.dumps(document))
    changes = files.model_dump(mode="json", exclude_unset=True) | {"kind": "coco"}
    with pytest.raises((DatasetError, RunError), match="circles"):
        evaluate_run(finished_run, data_changes=changes, output=tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()


def test_invalid_setting_of_the_dataset_is_named(finished_run):
    with pytest.raises(ConfigError, match=r"no setting 'data\.num_vals'; did you mean data\.num_val"):
        evaluate_run(finished_run, data_changes={"num_vals": 3})
