"""Metrics for TensorBoard and other tools."""

import pytest

from deformdetr.engine import ConfigError, Experiment, Processes, TrackingConfig
from deformdetr.engine import _tracking as engine_tracking
from deformdetr.engine._tracking import Tracking, check_tools
from experiments import tiny_experiment, tiny_run


class Recorder(Processes):
    """The calls that trackers would get."""

    def __init__(self):
        self.started, self.logged, self.is_finished = [], [], False

    def start_trackers(self, *arguments):
        self.started.append(arguments)

    def log(self, values, *, step):
        self.logged.append((step, values))

    def finish_trackers(self):
        self.is_finished = True


def test_settings_are_sent_once_and_numbers_of_every_row(tmp_path):
    recorder = Recorder()
    experiment = tiny_experiment(tracking={"tools": ["wandb"], "project": "cells"})
    tracking = Tracking(recorder, experiment, tmp_path / "mine")
    ((project, settings, arguments),) = recorder.started
    assert project == "cells"
    assert settings["train.lr"] == 1e-3
    assert settings["model.backbone.channels"] == "[8, 8, 8, 16]"
    assert arguments["wandb"] == {"name": "mine", "dir": str(tmp_path / "mine")}
    assert arguments["mlflow"] == {"run_name": "mine"}
    row = {"epoch": 1, "loss": 2.5, "lr": {"main": 1e-3}, "AP": None, "x": float("nan"), "per_class": [{"AP": 0.1}]}
    tracking.log(row, step=3)
    assert recorder.logged == [(3, {"epoch": 1, "loss": 2.5, "lr/main": 1e-3})]
    tracking.close()
    assert recorder.is_finished


def test_without_the_setting_nothing_is_sent(tmp_path):
    recorder = Recorder()
    tracking = Tracking(recorder, tiny_experiment(), tmp_path)
    tracking.log({"loss": 1.0}, step=1)
    assert (recorder.started, recorder.logged) == ([], [])


def test_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.tracking\.tools: wandb cannot be used.*: pip install wandb"):
        tiny_run(tmp_path / "run", tracking={"tools": ["wandb"]})
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(engine_tracking, "find_spec", lambda name: name == "tensorboardX")
    check_tools(TrackingConfig())
    with pytest.raises(ConfigError, match="mlflow, wandb cannot be used"):
        check_tools(TrackingConfig(tools=("mlflow", "tensorboard", "wandb")))


@pytest.mark.parametrize("tools", [[], ["neptune"]])
def test_other_tools_are_refused(tools):
    with pytest.raises(ValueError, match="tools"):
        Experiment.model_validate(tiny_experiment().model_dump() | {"train": {"tracking": {"tools": tools}}})


def test_processes_without_trackers_start_log_and_finish_none():
    processes = Processes()
    processes.start_trackers("project", {}, {})
    processes.log({"loss": 1.0}, step=1)
    processes.finish_trackers()


def test_tensorboard_gets_the_rows_of_a_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_run(tmp_path / "run", tracking={})
    events = EventAccumulator(str(run / "tracking" / "deformdetr")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 6]
    assert "lr/backbone" in events.Tags()["scalars"]
