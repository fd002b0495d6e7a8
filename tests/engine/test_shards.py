"""Training, resuming and evaluating on shards."""

from pathlib import Path
from typing import Any

import pytest

from deformdetr.data import ShapesConfig, write_shapes, write_shards
from deformdetr.engine import Experiment, RunDirectory, evaluate_run, train
from deformdetr.losses import SetCriterion
from experiments import SETTINGS
from fragile_runs import assert_same_run
from local_server import serving


def experiment(data: Any) -> Experiment:
    settings = {"epochs": 1, "batch_size": 2, "save_every_steps": 1}
    return Experiment.model_validate(SETTINGS | {"data": data, "train": SETTINGS["train"] | settings})


def test_a_run_on_shards_at_a_url_is_resumed_within_an_epoch_and_equals_one_on_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    files = write_shapes(ShapesConfig(num_train=8, num_val=2, image_size=64), tmp_path)
    write_shards(files.train_images, files.train_annotations, tmp_path / "shards/train", shard_bytes=20_000)
    write_shards(files.val_images, files.val_annotations, tmp_path / "shards/val")
    train(experiment(files), tmp_path / "whole")
    calls = []
    forward = SetCriterion.forward

    def killed(*arguments: Any, **others: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise ZeroDivisionError
        return forward(*arguments, **others)

    with serving() as server:
        server.serves_ranges = True
        for file in (tmp_path / "shards").rglob("*.*"):
            server.files[f"/{file.relative_to(tmp_path)}"] = file.read_bytes()
        shards = {name: f"{server.url}/shards/{name}" for name in ("train", "val")}
        of_shards = experiment(files.model_dump(exclude=_PATHS) | {"kind": "shards"} | shards)
        with monkeypatch.context() as patch:
            patch.setattr(SetCriterion, "forward", killed)
            with pytest.raises(ZeroDivisionError):
                train(of_shards, tmp_path / "run")
        train(of_shards, tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "run", tmp_path / "whole", ignored="experiment")
        metrics = evaluate_run(tmp_path / "run", num_worst=0).metrics
    assert metrics.items() <= RunDirectory(tmp_path / "whole").read_metrics()[-1].items()


_PATHS = {"kind", "train_images", "train_annotations", "val_images", "val_annotations"}
