"""For files of any content, public readers return or raise only what they document."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bad_files import Runs, Write, bad_tensor_files, bad_text_files
from checkpoints import tiny_config
from coco_files import coco_document, write_coco
from deformdetr.config import ConvBackboneConfig, DeformableDETRConfig, TimmConfig, load_config, save_config
from deformdetr.data import DatasetError, LabelMap, read_coco
from deformdetr.engine import Checkpoint, ConfigError, RunDirectory, RunError, load_run, read_experiment
from deformdetr.integrations import CheckpointError, convert_checkpoint, load_checkpoint, to_original
from deformdetr.integrations.hub import from_pretrained, pretrained_config, save_pretrained
from deformdetr.nn import ResNetBackbone
from experiments import SETTINGS, tiny_experiment

Documented = tuple[type[Exception], ...]


def refused(
    read: Callable[[Path], object], files: Iterable[tuple[str, Write]], folder: Path, documented: Documented
) -> list[str]:
    """Read all files, and return the names of those that were refused."""
    messages = {}
    for name, write in files:
        path = folder / name
        write(path)
        try:
            read(path)
        except documented as error:
            messages[name] = str(error)
        except Exception as error:
            raise AssertionError(f"{name}: {error!r} is not documented") from error
    assert not Runs.called
    assert [message for message in messages.values() if str(folder) not in message] == []
    return list(messages)


def model_config() -> DeformableDETRConfig:
    return tiny_config(backbone=ConvBackboneConfig(channels=(8, 8, 8, 8)))


def check_tensors(
    read: Callable[[Path], object], state: dict[str, Any], folder: Path, seed: int, documented: Documented
) -> None:
    files = list(bad_tensor_files(state, np.random.default_rng(seed)))
    names = refused(read, files, folder, documented)
    # Some changes of single bytes are changes of single numbers.
    assert len(names) > 0.8 * len(files), sorted({name for name, _ in files} - set(names))


def test_load_checkpoint(tmp_path, seed):
    model = model_config().build()
    state = dict(list(to_original(model.state_dict()).items())[:30])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_tensors(
        lambda path: load_checkpoint(model, path), state, tmp_path, seed, (CheckpointError, FileNotFoundError)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_convert_checkpoint(tmp_path, seed):
    state = dict(list(to_original(model_config().build().state_dict()).items())[:30])
    target = tmp_path / "target.pth"
    files = bad_tensor_files(state, np.random.default_rng(seed))
    documented = (CheckpointError, FileNotFoundError)
    refused(lambda path: convert_checkpoint(path, target, "original", overwrite=True), files, tmp_path, documented)


def test_checkpoint_of_a_run(tmp_path, seed):
    experiment = tiny_experiment()
    whole = Checkpoint(
        model=experiment.model.build().state_dict(),
        experiment=experiment,
        label_map=LabelMap(names=("a",), category_ids=(1,)),
        epoch=1,
        step=3,
        metrics={"AP": 0.5},
    )
    whole.save(tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt", weights_only=True)
    check_tensors(lambda path: load_run(path)[1], state, tmp_path, seed, (RunError,))


def test_weights_of_a_resnet(tmp_path, seed):
    state = {name: value for name, value in ResNetBackbone("resnet18").state_dict().items() if value.numel() < 1000}
    files = list(bad_tensor_files(state, np.random.default_rng(seed)))[seed % 3 :: 3]
    documented = (ValueError, FileNotFoundError)
    names = refused(lambda path: ResNetBackbone("resnet18", weights=path), files, tmp_path, documented)
    # The other layers are missing.
    assert len(names) == len(files)


def test_weights_of_timm(tmp_path, seed):
    state = {f"conv1.{number}.weight": torch.zeros(2, 3) for number in range(9)}

    def read(path: Path) -> None:
        TimmConfig(name="resnet10t", weights=str(path)).build((4,))

    files = list(bad_tensor_files(state, np.random.default_rng(seed)))[seed % 3 :: 3]
    refused(read, files, tmp_path, (ValueError, FileNotFoundError))


def test_model_of_a_folder(tmp_path, seed):
    config = model_config()
    model = config.build()
    save_pretrained(model, config, tmp_path)
    weights = tmp_path / "model.safetensors"

    def read(path: Path) -> None:
        weights.unlink()
        if path.exists() or path.is_symlink():
            path.rename(weights)
        from_pretrained(tmp_path)

    files = bad_tensor_files(model.state_dict(), np.random.default_rng(seed))
    some = [(name, write) for name, write in files if name.endswith(".safetensors") and name != "folder.safetensors"]
    assert len(refused(read, some, tmp_path, (CheckpointError, FileNotFoundError))) > 0.8 * len(some)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_configs(suffix, tmp_path, seed):
    content = model_config().model_dump(mode="json", exclude_defaults=True)
    files = list(bad_text_files(content, suffix, np.random.default_rng(seed)))
    documented = (ValueError, FileNotFoundError)
    names = refused(lambda path: load_config(path, DeformableDETRConfig), files, tmp_path, documented)
    assert len(names) > 0.5 * len(files)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_experiments(suffix, tmp_path, seed):
    files = list(bad_text_files(SETTINGS, suffix, np.random.default_rng(seed)))
    names = refused(read_experiment, files, tmp_path, (ConfigError,))
    assert len(names) > 0.5 * len(files)


def test_config_of_a_folder(tmp_path, seed):
    path = tmp_path / "config.json"
    save_config(model_config(), path)
    content = json.loads(path.read_text())

    def read(bad: Path) -> None:
        path.unlink(missing_ok=True)
        if bad.exists() or bad.is_symlink():
            bad.rename(path)
        pretrained_config(tmp_path)

    files = [each for each in bad_text_files(content, ".json", np.random.default_rng(seed)) if each[0] != "folder.json"]
    assert len(refused(read, files, tmp_path, (ValueError, FileNotFoundError))) > 0.5 * len(files)


def test_annotations(tmp_path, seed):
    write_coco(tmp_path, coco_document())
    files = list(bad_text_files(coco_document(), ".json", np.random.default_rng(seed)))
    names = refused(lambda path: read_coco(tmp_path, path), files, tmp_path, (DatasetError,))
    assert len(names) > 0.5 * len(files)


def test_metrics_of_a_run(tmp_path, seed):
    run = RunDirectory(tmp_path)
    for name, write in bad_text_files({"epoch": 1, "loss": 2.0}, ".jsonl", np.random.default_rng(seed)):
        run.metrics = tmp_path / name
        write(run.metrics)
        if run.metrics.is_file() and not run.metrics.is_symlink() and os.access(run.metrics, os.R_OK):
            run.append_metrics({"epoch": 2})
            assert run.read_metrics()[-1] == {"epoch": 2}
