"""Checkpoints during epochs, and the checkpoint before the latest one."""

import json

import pytest
import torch

from deformdetr.engine import (
    Checkpoint,
    Processes,
    RunDirectory,
    RunError,
    train,
)
from deformdetr.engine import _train as engine_train
from deformdetr.losses import SetCriterion
from experiments import tiny_experiment, tiny_run
from fragile_runs import assert_same_run

SETTINGS = {"batch_size": 2, "accumulate_steps": 2, "ema": {"decay": 0.9}, "save_every_steps": 2, "epochs": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "whole", **SETTINGS)


@pytest.mark.parametrize(("batch", "saved"), [(5, (0, 2)), (8, (1, 3)), (12, (1, 4))])
def test_killed_run_resumes_within_the_epoch_bit_for_bit(tmp_path, monkeypatch, whole, batch, saved):
    run, batches = tmp_path / "run", []
    forward = SetCriterion.forward

    def killed(self, outputs, targets, **others):
        batches.append([target["image_id"] for target in targets])
        if len(batches) == batch:
            raise ZeroDivisionError
        return forward(self, outputs, targets, **others)

    with monkeypatch.context() as patch:
        patch.setattr(SetCriterion, "forward", killed)
        with pytest.raises(ZeroDivisionError):
            tiny_run(run, **SETTINGS)
    checkpoint = Checkpoint.load(run / "last.pt")
    assert (checkpoint.epoch, checkpoint.step) == saved
    train(tiny_experiment(**SETTINGS), run, resume=True)
    assert_same_run(run, whole)


def test_saving_within_epochs_changes_nothing(tmp_path, whole):
    other = tiny_run(tmp_path / "run", **SETTINGS | {"save_every_steps": None})
    one, two = (torch.load(run / "last.pt", weights_only=True) for run in (whole, other))
    assert all(torch.equal(weights, two["model"][name]) for name, weights in one["model"].items())


def test_changes_are_recorded_although_the_epoch_is_interrupted_again(tmp_path, monkeypatch):
    run = tiny_run(tmp_path / "run", epochs=1)
    longer = tiny_experiment(epochs=2, save_every_steps=1)
    calls = []
    forward = SetCriterion.forward

    def killed(self, outputs, targets, **others):
        calls.append(None)
        if len(calls) == 2:
            raise ZeroDivisionError
        return forward(self, outputs, targets, **others)

    with monkeypatch.context() as patch:
        patch.setattr(SetCriterion, "forward", killed)
        with pytest.raises(ZeroDivisionError):
            train(longer, run, resume=True)
    train(longer, run, resume=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["changed"] == {"train.epochs": [1, 2], "train.save_every_steps": [None, 1]}


def test_other_number_of_processes_cannot_continue_an_epoch(tmp_path):
    run = RunDirectory(tiny_run(tmp_path / "run", epochs=1))
    content = torch.load(run.last, weights_only=True)
    content["training"]["progress"] = [{"steps": 1}] * 2
    torch.save(content, run.last)
    with pytest.raises(RunError, match=r"saved during an epoch by 2 processes, .* 1 cannot continue it; start 2"):
        train(tiny_experiment(), run.path, resume=True)


def test_processes_that_find_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    run = tiny_run(tmp_path / "run", epochs=1)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    # As on a second machine whose disk does not hold the run.
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, 0])
    with pytest.raises(RunError, match=r"from different steps \(3, 0\); to resume, all machines must share"):
        train(tiny_experiment(epochs=2), run, resume=True)
    assert before == {file.name: file.read_bytes() for file in run.iterdir()}


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_checkpoint_before_the_latest_one_replaces_a_damaged_one(tmp_path, finished_run, damage, capsys):
    run = RunDirectory(tiny_run(tmp_path / "run"))
    assert Checkpoint.load(run.previous).epoch == 1
    damage(run.last)
    capsys.readouterr()
    train(tiny_experiment(), run.path, resume=True)
    assert f"resuming from {run.previous}" in capsys.readouterr().out
    # The damaged one has not replaced it meanwhile.
    assert Checkpoint.load(run.previous).epoch == 1
    assert_same_run(run.path, finished_run)


def test_two_damaged_checkpoints_are_both_named(tmp_path):
    run = RunDirectory(tiny_run(tmp_path / "run"))
    cut(run.last)
    cut(run.previous)
    with pytest.raises(RunError, match=r"last\.pt cannot be read: .*; .*previous\.pt cannot be read: "):
        train(tiny_experiment(), run.path, resume=True)


def test_run_that_was_killed_before_its_first_file_starts_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".0123456789abcdef.unfinished").touch()
    run = train(tiny_experiment(epochs=1, max_steps=1), tmp_path / "run", resume=True).run
    assert not [each for each in run.iterdir() if each.name.startswith(".")]


@pytest.mark.parametrize(
    "error", [ValueError("no backend"), ImportError("broken"), OSError("full"), RuntimeError("odd")]
)
def test_curves_that_cannot_be_drawn_do_not_end_a_run(tmp_path, monkeypatch, error, capsys):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(engine_train, "plot_curves", fail)
    run = tiny_run(tmp_path / "run", epochs=1, max_steps=1)
    assert (run / "last.pt").exists()
    assert f"curves.png is not drawn: {error}" in capsys.readouterr().out
