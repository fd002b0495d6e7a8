"""Finding runs, and keeping their metrics."""

import errno
import inspect
import os
import re
import threading
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

import deformdetr.engine
from deformdetr._files import replacing
from deformdetr.data import DataConfig
from deformdetr.engine import (
    Checkpoint,
    ConfigError,
    DetectionResult,
    RunDirectory,
    RunError,
    _run_directory,
    evaluate_run,
    load_run,
    read_experiment,
    train,
)
from deformdetr.integrations.hub import save_pretrained
from experiments import tiny_experiment, tiny_run
from local_server import point_hub_to, serving


def test_best_checkpoint_is_preferred_to_the_last(tmp_path, finished_run):
    assert load_run(finished_run)[0].name == "best.pt"
    (tmp_path / "last.pt").write_bytes((finished_run / "last.pt").read_bytes())
    assert load_run(tmp_path)[0].name == "last.pt"


def test_checkpoint_file_stands_for_its_run(finished_run):
    path, checkpoint = load_run(finished_run / "last.pt")
    assert path == finished_run / "last.pt"
    assert checkpoint.epoch == 2


def test_checkpoints_of_runs_come_from_urls_and_the_hub(finished_run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    content = (finished_run / "best.pt").read_bytes()
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.files["/best.pt"] = content
        server.repositories["user/shapes"] = {"best.pt": content, "runs/other.pt": content}
        for source in (f"{server.url}/best.pt", "user/shapes", "user/shapes:runs/other.pt"):
            path, checkpoint = load_run(source)
            assert path.read_bytes() == content
            assert checkpoint.label_map.names
        for source in (f"{server.url}/gone.pt", "user/gone", "user/shapes:gone.pt", "gone.pt", tmp_path / "a\0b"):
            with pytest.raises(RunError, match="; a run directory of `deformdetr train`, one of its"):
                load_run(source)
        server.gated.add("user/shapes")
        with pytest.raises(PermissionError, match="gated"):
            load_run("user/shapes")


def test_a_published_model_is_a_checkpoint_without_a_dataset(finished_run, tmp_path):
    _, checkpoint = load_run(finished_run)
    published = replace(checkpoint, metrics={"AP": 0.5, "best_threshold": 0.25})
    settings = published.inference_settings().replace(short_side=48, max_size=None)
    save_pretrained(published.build(), published.experiment.model, tmp_path, settings=settings)
    path, loaded = load_run(str(tmp_path))
    assert path == tmp_path / "model.safetensors"
    assert loaded.inference_settings() == settings
    assert loaded.label_map == checkpoint.label_map
    assert loaded.model.keys() == checkpoint.model.keys()
    assert all(torch.equal(loaded.model[name], checkpoint.model[name]) for name in loaded.model)
    loaded.save(tmp_path / "copy.pt")
    assert load_run(tmp_path / "copy.pt")[1].inference_settings() == settings
    with pytest.raises(RunError, match=r"published without its dataset: name one, data\.val_images and"):
        evaluate_run(tmp_path)


def test_directory_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"holds none of best\.pt, last\.pt"):
        load_run(tmp_path)
    with pytest.raises(RunError, match=r"there is no file .*nothing"):
        load_run(tmp_path / "nothing")


def test_file_in_place_of_a_run_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory(tmp_path / "run").open(tiny_experiment(), resume=False)


def test_a_used_directory_is_refused_before_the_dataset_is_read(finished_run):
    experiment = read_experiment(finished_run / "config.yaml")
    missing = DataConfig(train_images="a", train_annotations="b", val_images="c", val_annotations="d")
    with pytest.raises(RunError, match="is not empty"):
        train(experiment.replace(data=missing), finished_run)


def test_a_read_only_directory_is_refused_before_the_dataset_is_read(tmp_path, monkeypatch):
    missing = DataConfig(train_images="a", train_annotations="b", val_images="c", val_annotations="d")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match=f"the folder {tmp_path} may not be written to"):
        train(tiny_experiment().replace(data=missing), tmp_path / "run")


def test_another_config_is_refused_with_the_one_that_continues_the_run(finished_run):
    experiment = read_experiment(finished_run / "config.yaml")
    changed = experiment.replace(train=experiment.train.replace(lr=0.5))
    with pytest.raises(RunError, match=r"train\.lr: .* before, 0\.5 now") as caught:
        RunDirectory(finished_run).open(changed, resume=True)
    *_, command = str(caught.value).splitlines()
    assert command.split() == f"deformdetr train {finished_run}/config.yaml --output {finished_run} --resume".split()
    assert RunDirectory(finished_run).open(experiment, resume=True) is not None


def test_truncated_line_is_dropped(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_metrics({"epoch": 1, "loss": 2.0})
    run.append_metrics({"epoch": 2, "loss": 1.0})
    with run.metrics.open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    run.create(tiny_experiment(), {}, epoch=1)
    run.append_metrics({"epoch": 2, "loss": 0.5})
    assert run.metrics.read_text() == '{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 0.5}\n'


def test_unfinished_files_of_a_killed_process_are_removed_on_resume(tmp_path):
    run = RunDirectory(tmp_path)
    run.create(tiny_experiment(), {}, epoch=0)
    kept = sorted(tmp_path.iterdir())
    # Never closed, like the file of a killed process.
    killed = replacing(run.last)
    killed.__enter__().write_bytes(b"half")
    assert len(list(tmp_path.iterdir())) == len(kept) + 1
    run.create(tiny_experiment(), {}, epoch=0)
    assert sorted(tmp_path.iterdir()) == kept


def _content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_directory_in_which_another_training_runs_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(_run_directory, "_SECONDS_TO_END", 0.2)
    run = tiny_run(tmp_path / "run", epochs=1)
    before = _content(run)
    with RunDirectory(run).claimed():
        with pytest.raises(RunError, match=r"run: another training is running in this directory"):
            train(tiny_experiment(epochs=2), run, resume=True)
        assert _content(run) == before
    assert train(tiny_experiment(epochs=2), run, resume=True).epoch == 2


def test_a_training_waits_for_one_that_ends(tmp_path):
    ending, events = ExitStack(), []
    ending.enter_context(RunDirectory(tmp_path).claimed())
    ending.callback(events.append, "ended")
    threading.Timer(0.3, ending.close).start()
    with RunDirectory(tmp_path).claimed():
        assert events == ["ended"]


@pytest.mark.parametrize(("number", "is_refused"), [(errno.ENOLCK, False), (errno.EBADF, False), (errno.EIO, True)])
def test_folders_that_have_no_locks_are_used_without(tmp_path, monkeypatch, number, is_refused):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match=r"error") if is_refused else nullcontext(), RunDirectory(tmp_path).claimed():
        pass


def _path_arguments():
    """Yield the public callables of the engine with an argument annotated as a path, and its annotation."""
    public = [getattr(deformdetr.engine, name) for name in deformdetr.engine.__all__]
    callables = [each for each in public if inspect.isfunction(each) or inspect.isclass(each)]
    methods = [
        method
        for each in callables
        if inspect.isclass(each) and not issubclass(each, tuple | BaseModel | DetectionResult)
        for name, method in inspect.getmembers(each, callable)
        if (name == "__init__" or not name.startswith("_")) and hasattr(method, "__annotations__")
    ]
    for function in [*filter(inspect.isfunction, callables), *methods]:
        for argument, annotation in function.__annotations__.items():
            if argument != "return" and "Path" in str(annotation):
                yield pytest.param(annotation, id=f"{function.__qualname__}-{argument}")


@pytest.mark.parametrize("annotation", list(_path_arguments()))
def test_paths_are_taken_as_text_too(annotation):
    kinds = str(annotation)
    assert "str |" in kinds or "[str | " in kinds


def test_text_names_runs_and_checkpoints(finished_run, tmp_path):
    assert load_run(str(finished_run))[0] == finished_run / "best.pt"
    checkpoint = Checkpoint.load(str(finished_run / "best.pt"))
    checkpoint.save(str(tmp_path / "again.pt"))
    assert Checkpoint.load(tmp_path / "again.pt").epoch == checkpoint.epoch
    assert RunDirectory(str(finished_run)).best == finished_run / "best.pt"


def test_a_missing_relative_path_is_reported_with_the_directory_that_it_starts_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = re.escape(f"there is no file nothing.yaml; a relative path starts at the current directory, {tmp_path}")
    with pytest.raises(ConfigError, match=expected):
        read_experiment("nothing.yaml")
    with pytest.raises(ConfigError, match=rf"there is no file {re.escape(str(tmp_path))}/nothing\.yaml$"):
        read_experiment(tmp_path / "nothing.yaml")


def test_every_file_and_folder_of_a_run_is_named(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.file_names() == {path.name for name, path in vars(run).items() if name != "path" and name[0] != "_"}
