"""Whole runs: the files they write, resuming and stopping."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torchvision
import yaml
from PIL import Image

from deformdetr.data import DataConfig, DetectionDataset
from deformdetr.engine import (
    Checkpoint,
    ConfigError,
    Experiment,
    RunDirectory,
    RunError,
    TrainingError,
    evaluate_run,
    load_run,
    train,
)
from deformdetr.engine import _train as engine_train
from deformdetr.integrations import save_checkpoint
from deformdetr.losses import SetCriterion
from disks import disk_space
from experiments import SETTINGS, tiny_experiment, tiny_run
from local_server import point_hub_to, serving


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(run, other):
    _, one = load_run(run, prefer=["last.pt"])
    _, two = load_run(other, prefer=["last.pt"])
    assert one.model.keys() == two.model.keys()
    for name, weights in one.model.items():
        assert torch.equal(weights, two.model[name]), name


def stop_at_the_start_of_epoch(monkeypatch, epoch, error):
    """Make the first batch after `epoch - 1` epochs of three batches raise an error."""
    calls = []
    forward = SetCriterion.forward

    def failing(self, outputs, targets, **others):
        calls.append(None)
        if len(calls) == 3 * (epoch - 1) + 1:
            raise error
        return forward(self, outputs, targets, **others)

    monkeypatch.setattr(SetCriterion, "forward", failing)


def test_run_directory_holds_config_metrics_curves_and_checkpoints(finished_run):
    assert {file.name for file in finished_run.iterdir()} == {
        "best.pt",
        "config.yaml",
        "curves.png",
        "environment.json",
        "last.pt",
        "metrics.jsonl",
        "previous.pt",
    }
    with Image.open(finished_run / "curves.png") as curves:
        assert min(curves.size) > 200
    assert json.loads((finished_run / "environment.json").read_text())["torch"] == torch.__version__


def test_metrics_have_losses_precision_rates_and_speed_of_every_epoch(finished_run):
    rows = rows_of(finished_run)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6)]
    for row in rows:
        assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "loss_ce_enc", "AP", "AP50", "per_class"} <= row.keys()
        assert row["lr"] == pytest.approx({"main": 1e-3, "backbone": 1e-3, "sampling": 1e-4})
        assert row["seconds"] > 0
        assert row["images_per_second"] > 0


def test_saved_config_is_complete_and_describes_the_same_run(finished_run):
    saved = Experiment.model_validate(yaml.safe_load((finished_run / "config.yaml").read_text()))
    assert saved.model.num_classes == 3
    assert saved == load_run(finished_run)[1].experiment


def test_total_loss_is_the_weighted_sum_of_its_parts(finished_run):
    for row in rows_of(finished_run):
        parts = {name: value for name, value in row.items() if name.startswith("loss_")}
        weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
        expected = sum(weights["_".join(name.split("_")[:2])] * value for name, value in parts.items())
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss(tmp_path):
    rows = rows_of(tiny_run(tmp_path / "run", epochs=8, eval_every=8))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert "AP" not in rows[-2]
    assert "AP" in rows[-1]


def test_the_seed_determines_a_run(tmp_path, finished_run):
    assert_same_weights(finished_run, tiny_run(tmp_path / "again"))
    with pytest.raises(AssertionError):
        assert_same_weights(finished_run, tiny_run(tmp_path / "other", seed=1))


def test_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch, finished_run):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at_the_start_of_epoch(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            tiny_run(run)
    assert [row["epoch"] for row in rows_of(run)] == [1]
    result = train(tiny_experiment(), run, resume=True)
    assert (result.epoch, result.step) == (2, 6)
    assert_same_weights(run, finished_run)
    drop_times = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows_of(run)]
    expected = [{k: row[k] for k in drop_times[0]} for row in rows_of(finished_run)]
    assert drop_times == expected


def test_resumed_run_restores_the_optimizer(tmp_path, finished_run):
    run = tiny_run(tmp_path / "run", epochs=1)
    train(tiny_experiment(), run, resume=True)
    ours, theirs = (Checkpoint.load(each / "last.pt").training for each in (run, finished_run))
    assert ours["best"] == theirs["best"]
    states = [each["learner"]["optimizer"]["state"] for each in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][index][name])


def test_longer_run_continues_a_finished_one(tmp_path, finished_run):
    run = tiny_run(tmp_path / "run", epochs=1)
    train(tiny_experiment(epochs=2), run, resume=True)
    assert_same_weights(run, finished_run)


def test_dropout_follows_the_seed_after_resuming(tmp_path):
    def experiment(epochs):
        settings = SETTINGS | {"model": SETTINGS["model"] | {"dropout": 0.3}}
        return Experiment.model_validate(settings | {"train": SETTINGS["train"] | {"epochs": epochs}})

    train(experiment(2), tmp_path / "whole")
    train(experiment(1), tmp_path / "parts")
    train(experiment(2), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_resume_without_a_run_starts_one(tmp_path, finished_run):
    train(tiny_experiment(), tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "run", finished_run)


def test_run_without_a_checkpoint_restarts_on_resume(tmp_path, monkeypatch, finished_run):
    with monkeypatch.context() as patch:
        stop_at_the_start_of_epoch(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path / "run")
    train(tiny_experiment(), tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "run", finished_run)


def test_directory_with_content_is_refused_and_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"not empty .*notes\.txt"):
        tiny_run(tmp_path)
    with pytest.raises(RunError, match="no run to resume"):
        train(tiny_experiment(), tmp_path, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_with_another_config_names_the_differences(finished_run):
    before = {file.name: file.read_bytes() for file in finished_run.iterdir()}
    with pytest.raises(RunError) as refused:
        train(tiny_experiment(lr=5e-4, weight_decay=0.0, eval_every=2), finished_run, resume=True)
    assert "train.lr: 0.001 before, 0.0005 now" in str(refused.value)
    assert "train.weight_decay: 0.0001 before, 0.0 now" in str(refused.value)
    assert "eval_every" not in str(refused.value)
    assert before == {file.name: file.read_bytes() for file in finished_run.iterdir()}


def test_finished_cosine_goes_on_at_its_last_rate_if_told_so(tmp_path):
    run = tiny_run(tmp_path / "run", epochs=1, schedule={"kind": "cosine"})
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(RunError, match=r"would change .* finished epochs: .* train\.schedule\.epochs=1"):
        train(tiny_experiment(schedule={"kind": "cosine"}), run, resume=True)
    assert before == {file.name: file.read_bytes() for file in run.iterdir()}
    train(tiny_experiment(schedule={"kind": "cosine", "epochs": 1}), run, resume=True)
    assert [row["lr"]["main"] for row in rows_of(run)] == pytest.approx([1e-5, 1e-5])


def test_learning_rate_can_be_dropped_on_resume_and_the_run_records_it(tmp_path, capsys):
    run = tiny_run(tmp_path / "run", epochs=2)
    dropped = tiny_experiment(epochs=4, schedule={"drop_epochs": [2]})
    train(dropped, run, resume=True)
    rows = rows_of(run)
    assert [row["lr"]["main"] for row in rows] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert rows[2]["changed"] == {"train.epochs": [2, 4], "train.schedule.drop_epochs": [[40], [2]]}
    assert "changed" not in rows[3]
    assert "train.schedule.drop_epochs: [40] before, [2] now" in capsys.readouterr().out
    assert Checkpoint.load(run / "last.pt").experiment.train.schedule.drop_epochs == (2,)
    with pytest.raises(RunError, match=r"in epoch 3 it was 0\.0001, and would be 0\.001; .* exactly \[2\]"):
        train(tiny_experiment(epochs=5), run, resume=True)


def test_finished_run_says_so(tmp_path, finished_run, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    result = train(tiny_experiment(), run, resume=True)
    assert (result.epoch, result.step) == (2, 6)
    assert "ended after epoch 2 (train.epochs is 2" in capsys.readouterr().out
    for name in ("last.pt", "best.pt", "metrics.jsonl"):
        assert (run / name).read_bytes() == (finished_run / name).read_bytes()


AVERAGED = {"ema": {"decay": 0.9}}


def test_averaged_weights_are_evaluated_and_saved_and_change_no_training(tmp_path, finished_run):
    run = tiny_run(tmp_path / "run", **AVERAGED, eval_every=2)
    last, plain = Checkpoint.load(run / "last.pt"), Checkpoint.load(finished_run / "last.pt")
    for name, weights in last.training["learner"]["model"].items():
        assert torch.equal(weights, plain.model[name]), name
    assert not torch.equal(last.model["neck.levels.0.conv.weight"], plain.model["neck.levels.0.conv.weight"])
    best = Checkpoint.load(run / "best.pt")
    assert all(torch.equal(weights, last.model[name]) for name, weights in best.model.items())
    assert evaluate_run(run / "last.pt", output=tmp_path / "ap.json").metrics["AP"] == last.metrics["AP"]


def test_run_with_averaged_weights_resumes_bit_for_bit(tmp_path):
    whole = tiny_run(tmp_path / "whole", **AVERAGED, gradient_checkpointing=True)
    parts = tiny_run(tmp_path / "parts", **AVERAGED, gradient_checkpointing=True, epochs=1)
    train(tiny_experiment(**AVERAGED, gradient_checkpointing=True), parts, resume=True)
    assert_same_weights(whole, parts)
    one, two = (Checkpoint.load(run / "last.pt").training["learner"] for run in (whole, parts))
    assert one["averaged"] == two["averaged"] == 6
    assert all(torch.equal(weights, two["model"][name]) for name, weights in one["model"].items())


def test_averaging_cannot_start_within_a_run(tmp_path):
    run = tiny_run(tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match=r"train\.ema\.decay: None before, 0\.9 now"):
        train(tiny_experiment(**AVERAGED), run, resume=True)


def test_run_without_progress_ends_early_stays_ended_and_goes_on_with_more_patience(tmp_path, monkeypatch, capsys):
    scores = iter([0.2, 0.3, 0.3, 0.25, 0.31])
    real = engine_train.evaluate

    def scored(*arguments, **settings):
        found = real(*arguments, **settings)
        return found._replace(metrics=found.metrics | {"AP": next(scores)})

    monkeypatch.setattr(engine_train, "evaluate", scored)
    stopping = {"epochs": 9, "early_stopping": {"patience": 2}, "save_every": 9}
    result = train(tiny_experiment(**stopping), tmp_path / "run")
    assert (result.epoch, result.best) == (4, 0.3)
    said = "ended after epoch 4: AP has not risen above 0.300 in 2 evaluations (train.early_stopping)"
    assert said in capsys.readouterr().out
    assert load_run(tmp_path / "run")[1].epoch == 2
    assert train(tiny_experiment(**stopping), tmp_path / "run", resume=True).epoch == 4
    assert said in capsys.readouterr().out
    more = stopping | {"epochs": 5, "early_stopping": {"patience": 3}}
    assert train(tiny_experiment(**more), tmp_path / "run", resume=True).best == 0.31


def test_max_steps_stops_within_an_epoch_and_saves(tmp_path):
    run = tmp_path / "run"
    result = train(tiny_experiment(max_steps=4), run)
    assert (result.epoch, result.step) == (2, 4)
    assert load_run(run, prefer=["last.pt"])[1].step == 4
    assert [row["step"] for row in rows_of(run)] == [3, 4]


def test_accumulated_batches_make_one_step_per_group(tmp_path):
    result = train(tiny_experiment(batch_size=2, accumulate_steps=4, epochs=1), tmp_path / "run")
    # Six batches: a group of four and a group of two.
    assert result.step == 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_float32_weights(tmp_path, precision):
    run = tiny_run(tmp_path / "run", precision=precision, epochs=1)
    _, checkpoint = load_run(run)
    assert {weights.dtype for weights in checkpoint.model.values() if weights.is_floating_point()} == {torch.float32}
    rows = rows_of(run)
    assert all(torch.tensor(row["loss"]).isfinite() for row in rows)


def test_gradient_checkpointing_changes_no_weight(tmp_path, finished_run):
    run = tiny_run(tmp_path / "run", gradient_checkpointing=True)
    assert_same_weights(run, finished_run)


def test_loader_processes_change_no_weight(tmp_path, finished_run):
    settings = SETTINGS | {"data": SETTINGS["data"] | {"num_workers": 2}}
    train(Experiment.model_validate(settings), tmp_path / "run")
    assert_same_weights(tmp_path / "run", finished_run)


def test_loss_that_is_not_finite_names_step_images_and_loss(tmp_path, monkeypatch):
    run = tmp_path / "run"
    forward = SetCriterion.forward
    calls = []

    def broken(self, outputs, targets, **others):
        losses = forward(self, outputs, targets, **others)
        calls.append([target["image_id"] for target in targets])
        if len(calls) == 5:
            losses["loss_giou_0"] = losses["loss_giou_0"] * torch.nan
        return losses

    monkeypatch.setattr(SetCriterion, "forward", broken)
    with pytest.raises(TrainingError) as stopped:
        tiny_run(run)
    message = str(stopped.value)
    assert "step 5" in message
    assert str(calls[4]) in message
    assert "loss_giou_0" in message
    assert "loss_bbox" not in message
    _, checkpoint = load_run(run, prefer=["last.pt"])
    assert checkpoint.step == 3
    assert all(weights.isfinite().all() for weights in checkpoint.model.values())


@pytest.mark.parametrize("batch", [2, 3])
def test_gradient_that_is_not_finite_stops_before_anything_is_saved(tmp_path, monkeypatch, batch):
    run = tmp_path / "run"
    forward = SetCriterion.forward
    calls = []

    def broken(self, outputs, targets, **others):
        losses = forward(self, outputs, targets, **others)
        calls.append(None)
        if len(calls) == batch:
            # The loss is finite, but its derivative is not.
            root = (outputs["pred_logits"].sum() * 0).sqrt()
            losses["loss_ce"] = losses["loss_ce"] + root
        return losses

    monkeypatch.setattr(SetCriterion, "forward", broken)
    with pytest.raises(TrainingError, match=rf"step {batch}, images \[.*gradient is nan"):
        tiny_run(run)
    assert not (run / "last.pt").exists()


def test_predictions_that_are_not_finite_name_step_and_images(tmp_path, monkeypatch):
    getitem = DetectionDataset.__getitem__

    def broken(self, index):
        image, target = getitem(self, index)
        return image * torch.nan, target

    monkeypatch.setattr(DetectionDataset, "__getitem__", broken)
    with pytest.raises(TrainingError, match=r"step 1, images \["):
        tiny_run(tmp_path / "run")


def test_batch_larger_than_the_dataset_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"12 training images .*batch_size is 16"):
        tiny_run(tmp_path / "run", batch_size=16)
    assert not (tmp_path / "run").exists()


def test_training_starts_from_a_checkpoint_with_another_class_head(tmp_path, finished_run):
    settings = SETTINGS | {
        "model": SETTINGS["model"] | {"num_classes": 5},
        "train": SETTINGS["train"] | {"epochs": 1, "lr": 1e-12, "init_checkpoint": str(finished_run / "best.pt")},
    }
    train(Experiment.model_validate(settings), tmp_path / "run")
    _, ours = load_run(tmp_path / "run")
    _, theirs = load_run(finished_run)
    for name, weights in ours.model.items():
        if "class_head" in name:
            assert weights.shape[0] == 5
        else:
            torch.testing.assert_close(weights, theirs.model[name], rtol=1e-4, atol=1e-6)


def test_initial_weights_come_from_a_url_or_the_hub_without_those_of_the_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    backbone = {"kind": "resnet", "name": "resnet18", "weights": "DEFAULT"}
    settings = SETTINGS | {"model": SETTINGS["model"] | {"num_classes": 3, "backbone": backbone}}
    model = Experiment.model_validate(settings).model.replace(backbone=backbone | {"weights": None}).build()
    save_checkpoint(model, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.files["/model.safetensors"] = content
        server.repositories["user/shapes"] = {"model.safetensors": content}
        for number, source in enumerate((f"{server.url}/model.safetensors", "user/shapes")):
            started = {"epochs": 1, "lr": 1e-12, "max_steps": 1, "init_checkpoint": source}
            experiment = Experiment.model_validate(settings | {"train": SETTINGS["train"] | started})
            run = train(experiment, tmp_path / f"run{number}").run
            _, checkpoint = load_run(run)
            assert checkpoint.experiment.train.init_checkpoint == source
            for name, weights in checkpoint.model.items():
                torch.testing.assert_close(weights, model.state_dict()[name], rtol=1e-4, atol=1e-6)
        with pytest.raises(FileNotFoundError, match="no repository on the Hub of this name"):
            train(tiny_experiment(init_checkpoint="user/gone"), tmp_path / "gone")


def _resnet(**changes):
    return {"kind": "resnet", "name": "resnet18"} | changes


@pytest.mark.parametrize(
    ("backbone", "reason", "way_out"),
    [
        (
            _resnet(),
            r"156,864 weights are random and frozen \(backbone\.conv1, backbone\.layer1\), and the norms",
            r"model\.backbone\.weights: DEFAULT, or train\.init_checkpoint.*norm to group or batch and .*layers to 5",
        ),
        (
            _resnet(trainable_layers=5),
            "cannot learn: the norms of the backbone are frozen without statistics",
            "DEFAULT",
        ),
        (_resnet(norm="group"), r"cannot learn: 157,504 weights are random and frozen \(backbone\.", "layers to 5"),
        ({"kind": "timm", "name": "resnet10t", "frozen": ["conv1"]}, "weights are random and frozen", "frozen out"),
        (
            {"kind": "dat", "trainable_layers": 4},
            r"cannot learn: 4,896 weights are random and frozen \(backbone\.stages",
            r"model\.backbone\.weights, or train\.init_checkpoint.*trainable_layers to 5",
        ),
    ],
)
def test_frozen_random_weights_are_refused_with_the_way_out(backbone, reason, way_out, tmp_path):
    settings = SETTINGS | {"model": SETTINGS["model"] | {"backbone": backbone}}
    with pytest.raises(ConfigError, match=rf"{reason}.*{way_out}"):
        train(Experiment.model_validate(settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The model alone can be built.
    Experiment.model_validate(settings).model.build()


def test_random_parts_cannot_be_frozen_by_the_parts_to_train(tmp_path):
    with pytest.raises(ConfigError, match=r"random and frozen \(.*encoder\.layers.*leave train\.trainable out"):
        train(tiny_experiment(trainable=("class_heads",)), tmp_path / "run")


def test_pretrained_backbones_may_be_frozen(tmp_path):
    backbone = _resnet()
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
    parts = [name for name, _ in tiny_experiment().model.build().named_parameters()]
    parts = sorted({name.partition(".")[0] for name in parts} - {"backbone"})
    settings = SETTINGS | {
        "model": SETTINGS["model"] | {"backbone": backbone | {"weights": str(weights)}},
        "train": SETTINGS["train"] | {"epochs": 1, "max_steps": 1},
    }
    for number, trainable in enumerate(((), parts)):
        experiment = Experiment.model_validate(settings | {"train": settings["train"] | {"trainable": trainable}})
        assert train(experiment, tmp_path / f"run{number}").step == 1
    # Random weights on purpose.
    random = Experiment.model_validate(
        settings | {"model": SETTINGS["model"] | {"backbone": _resnet(norm="group", trainable_layers=5)}}
    )
    assert train(random, tmp_path / "random").step == 1


def test_discrete_sampling_trains_all_but_the_offsets(tmp_path, finished_run):
    methods = {"enc_method": "discrete", "dec_method": "discrete"}
    short = SETTINGS["train"] | {"epochs": 1, "max_steps": 1}
    described = {
        "scratch": Experiment.model_validate(SETTINGS | {"model": SETTINGS["model"] | methods, "train": short}),
        "tuned": Experiment.model_validate(
            SETTINGS
            | {"model": SETTINGS["model"] | methods, "train": short | {"init_checkpoint": finished_run / "best.pt"}}
        ),
    }
    _, bilinear = load_run(finished_run)
    for name, experiment in described.items():
        assert train(experiment, tmp_path / name).step == 1
        _, trained = load_run(tmp_path / name)
        assert trained.experiment.model.dec_method == "discrete"
        changed = {key for key, weights in trained.model.items() if not torch.equal(weights, bilinear.model[key])}
        assert {key for key in changed if "cross_attn.value_proj.weight" in key}
        has_other_offsets = any("sampling_offsets" in key for key in changed)
        assert has_other_offsets is (name == "scratch")


def test_unset_variable_in_the_path_of_initial_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(ConfigError, match=r"train\.init_checkpoint: \$MISSING/a\.pth: .*'MISSING' is not set"):
        train(tiny_experiment(init_checkpoint="$MISSING/a.pth"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_initial_weights_are_named_before_the_dataset_is_read(tmp_path):
    data = {name: tmp_path / "missing" for name in DataConfig.model_fields if name.startswith(("train_", "val_"))}
    settings = SETTINGS | {"data": data, "train": SETTINGS["train"] | {"init_checkpoint": tmp_path / "gone.pth"}}
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        train(Experiment.model_validate(settings), tmp_path / "run")


def test_full_disk_ends_a_run_with_the_file_name_and_the_run_can_be_resumed(tmp_path):
    run = tmp_path / "run"
    with disk_space(15_000), pytest.raises(OSError, match=r"cannot be written: File too large: .*run"):
        train(tiny_experiment(), run)
    assert [path.name for path in run.iterdir() if path.name.endswith("unfinished")] == []
    assert train(tiny_experiment(), run, resume=True).epoch == 2


@pytest.mark.parametrize("training", [{}, {"learner": {"optimizer": {}, "scaler": {}}, "best": None}, {"learner": 3}])
def test_checkpoint_with_another_state_of_training_is_refused(training, finished_run, tmp_path):
    refuse_state(training, finished_run, tmp_path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("progress", 3),
        ("progress", [3]),
        ("progress", [{"steps": "many"}]),
        ("best", 3),
        ("best", {"score": 3, "reference": None, "waited": 0}),
        ("best", {"score": None, "reference": None, "waited": None}),
        ("changes", 3),
        ("changes", {"train.lr": 3}),
        ("learner", {"optimizer": 3, "scaler": {}}),
        ("learner", {"optimizer": {"state": 3, "param_groups": [{"params": []}] * 3}, "scaler": {}}),
    ],
)
def test_forged_state_of_training_is_refused(part, value, finished_run, tmp_path):
    refuse_state(Checkpoint.load(finished_run / "last.pt").training | {part: value}, finished_run, tmp_path)


def refuse_state(training, finished_run, folder):
    run = RunDirectory(folder)
    checkpoint = Checkpoint.load(finished_run / "last.pt")
    run.create(checkpoint.experiment, {}, epoch=0)
    replace(checkpoint, training=training).save(run.last)
    with pytest.raises(RunError, match="does not hold the state for resuming this run"):
        train(checkpoint.experiment, folder, resume=True)
