"""Evaluation of models and of runs."""

import contextlib
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformdetr.data import DatasetError, build_dataset, write_shapes
from deformdetr.engine import ConfigError, Evaluation, Processes, RunError, evaluate, evaluate_run, load, load_run
from deformdetr.integrations.hub import save_pretrained
from experiments import tiny_experiment
from local_server import point_hub_to, serving
from oracle import Oracle


def test_perfect_predictions_have_a_precision_of_one_at_any_batch_size():
    experiment = tiny_experiment()
    dataset = build_dataset(experiment.data.replace(num_val=7), "val")
    for batch_size in (1, 3, 7):
        model = Oracle(dataset).train()
        found = evaluate(model, experiment.model.build_postprocess(), dataset, Processes(), batch_size=batch_size)
        assert found.metrics["AP"] == pytest.approx(1)
        assert found.metrics["best_f1"] == pytest.approx(1)
        assert 0 < found.metrics["best_threshold"] < 1
        assert model.training
        assert model.shown == 7


class Share(Processes):
    """One of several processes, which run one after another, the main one last."""

    def __init__(self, rank, world_size, gathered):
        super().__init__()
        self.rank, self.world_size, self.gathered = rank, world_size, gathered

    def gather(self, value):
        self.gathered.append(value)
        return self.gathered

    def broadcast(self, value):
        return value or Evaluation({}, "", "")


@pytest.mark.parametrize(("images", "world_size"), [(1, 2), (5, 2), (6, 2), (7, 3)])
def test_shares_of_processes_give_the_metrics_of_one(images, world_size, rng):
    experiment = tiny_experiment()
    dataset = build_dataset(experiment.data.replace(num_val=images), "val")
    postprocess = experiment.model.build_postprocess()
    targets = Oracle(dataset).targets
    for target in targets:
        # Overlaps of 0.56 to 0.81.
        target["boxes"][:, 2:] *= 0.75 + 0.15 * torch.rand(len(target["boxes"]), 2, generator=rng)

    def found(processes):
        model = Oracle(dataset)
        model.targets = targets[processes.rank :: processes.world_size]
        result = evaluate(model, postprocess, dataset, processes, batch_size=2)
        assert model.shown == len(model.targets)
        return result

    gathered = []
    for rank in reversed(range(world_size)):
        shared = found(Share(rank, world_size, gathered))
    alone = found(Processes())
    assert shared == alone
    assert 0 < alone.metrics["AR100"] < 1


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


def test_a_published_model_is_evaluated_on_a_dataset_of_the_same_categories(finished_run, tmp_path):
    _, checkpoint = load_run(finished_run)
    shapes = checkpoint.experiment.data
    data = write_shapes(shapes, tmp_path / "data")
    folder = tmp_path / "folder"
    settings = checkpoint.inference_settings()
    save_pretrained(checkpoint.build(), checkpoint.experiment.model, folder, settings=settings)
    changes = {"val_images": str(data.val_images), "val_annotations": str(data.val_annotations), "num_workers": 0}
    published = evaluate_run(folder, data_changes=changes, batch_size=1)
    expected = evaluate_run(finished_run, output=tmp_path / "run.json", batch_size=1)
    assert published.metrics == expected.metrics
    assert json.loads((folder / "evaluation.json").read_text())["checkpoint"] == "model.safetensors"


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


def read_results(truth, file):
    """Return the detections in a file as pycocotools reads them."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        return coco, coco.loadRes(str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [("metrics", "metrics must end in .json"), ("a.json", "is a folder"), ("gone/b.json", "there is no folder .*gone")],
)
def test_files_that_cannot_be_written_are_refused_before_evaluating(name, message, finished_run, tmp_path, monkeypatch):
    (tmp_path / "a.json").mkdir()
    monkeypatch.setattr("deformdetr.engine._evaluate.build_dataset", None)
    with pytest.raises((ValueError, OSError), match=message):
        evaluate_run(finished_run, output=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_read_only_run_is_refused_before_evaluating_unless_another_file_is_named(finished_run, tmp_path, monkeypatch):
    # Root may write to every folder of the tests.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != finished_run)
    with pytest.raises(PermissionError, match="may not be written to"):
        evaluate_run(finished_run, data_changes={"num_val": 1})
    evaluate_run(finished_run, data_changes={"num_val": 1}, output=tmp_path / "a.json")


def test_batches_without_images_are_refused(finished_run, tmp_path):
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        evaluate_run(finished_run, batch_size=0, output=tmp_path / "result.json")


def test_a_negative_number_of_pictures_is_refused(finished_run, tmp_path):
    with pytest.raises(ValueError, match="num_worst must not be negative, got -1"):
        evaluate_run(finished_run, num_worst=-1, output=tmp_path / "result.json")


def test_nothing_is_written_beside_downloads(finished_run, tmp_path, monkeypatch):
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.repositories["user/run"] = {"best.pt": (finished_run / "best.pt").read_bytes()}
        with pytest.raises(RunError, match="user/run is downloaded and has no run directory: name a JSON file"):
            evaluate_run("user/run")
        evaluate_run("user/run", output=tmp_path / "result.json")
    assert (tmp_path / "result" / "detections.json").exists()
    assert not list((tmp_path / "cache").rglob("evaluation*"))


def test_detections_are_written_in_the_format_that_pycocotools_reads(finished_run, tmp_path):
    found = evaluate_run(finished_run, output=tmp_path / "result.json")
    dataset = build_dataset(load_run(finished_run)[1].experiment.data, "val")
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCOeval(*read_results(dataset.annotations.to_coco(), tmp_path / "result/detections.json"), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert reference.stats[0] == pytest.approx(found.metrics["AP"])
    assert reference.stats[8] == pytest.approx(found.metrics["AR100"])


def test_metrics_of_classes_and_the_best_threshold_are_written_and_suggested(finished_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pt").write_bytes((finished_run / "best.pt").read_bytes())
    found = evaluate_run(str(run))
    written = json.loads((run / "evaluation.json").read_text())
    assert [row["name"] for row in written["per_class"]] == ["circle", "rectangle", "triangle"]
    assert all({"AP", "AR", "best_threshold", "best_f1"} <= row.keys() for row in written["per_class"])
    assert load(run).best_threshold == written["best_threshold"] == found.metrics["best_threshold"]


def test_curves_confusions_and_the_worst_images_are_drawn(finished_run, tmp_path):
    evaluate_run(finished_run, output=tmp_path / "result.json", num_worst=2)
    folder = tmp_path / "result"
    for name in ("precision_recall.png", "confusion.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 300
    worst = sorted(folder.glob("worst/*.png"))
    assert [file.name[:3] for file in worst] == ["01_", "02_"]
    counts = [sum(map(int, re.findall(r"(\d+)-", file.name))) for file in worst]
    assert counts[0] >= counts[1] > 0
    # Pictures of an earlier evaluation do not stay.
    evaluate_run(finished_run, output=tmp_path / "result.json", num_worst=0)
    assert not list(folder.glob("worst/*.png"))


def test_images_without_annotations_are_predicted(finished_run, tmp_path):
    files = write_shapes(tiny_experiment().data, tmp_path)
    document = json.loads((tmp_path / "val.json").read_text())
    del document["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(document))
    changes = files.model_dump(mode="json", exclude_unset=True) | {"kind": "coco"}
    found = evaluate_run(finished_run, data_changes=changes, output=tmp_path / "result.json")
    assert found.metrics["AP"] is None
    assert [file.name for file in (tmp_path / "result").iterdir()] == ["detections.json"]
    truth = document | {"annotations": []}
    _, results = read_results(truth, tmp_path / "result" / "detections.json")
    assert set(results.getImgIds(catIds=[])) == {image["id"] for image in document["images"]}
    assert len(results.anns) == 20 * len(document["images"])


def test_more_detections_are_kept_and_counted_where_asked(finished_run, tmp_path):
    default, more = (
        evaluate_run(finished_run, max_detections=limit, output=tmp_path / f"{limit}.json") for limit in (None, 250)
    )
    assert default.metrics["max_detections"] == 100
    assert more.metrics["max_detections"] == 250
    counts = [len(json.loads((tmp_path / name / "detections.json").read_text())) for name in ("None", "250")]
    # The model has 10 queries and 3 classes, and keeps 20 of the pairs by itself.
    assert counts == [5 * 20, 5 * 30]
    with pytest.raises(ConfigError, match=r"train\.max_detections: Input should be greater than or equal to 100"):
        evaluate_run(finished_run, max_detections=50)
