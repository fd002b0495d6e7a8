"""Training of a compiled model, and in bfloat16, on two processes that accelerate starts."""

import subprocess
import sys
from pathlib import Path

import pytest

import two_trainings
from deformdetr.config import save_config
from deformdetr.engine import RunDirectory, load_run, train
from experiments import tiny_experiment

pytestmark = [pytest.mark.compile, pytest.mark.slow]

_ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate.yaml"


def loss(run):
    (row,) = RunDirectory(run).read_metrics()
    return row["loss"]


def test_two_processes_train_compiled_and_in_bfloat16_as_one_process_does_without(tmp_path):
    # One batch of validation images for each process: every other size would be compiled too.
    one = tiny_experiment(epochs=1)
    one = one.replace(data=one.data.replace(num_val=4), model=one.model.replace(num_classes=3, num_decoder_layers=1))
    save_config(one.replace(train=one.train.replace(batch_size=2)), tmp_path / "two.json")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(_ACCELERATE)]
    launch += [two_trainings.__file__, str(tmp_path / "two.json"), str(tmp_path)]
    process = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=600)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("compiled\n") == 2

    expected = train(one, tmp_path / "one").run
    assert loss(tmp_path / "compiled") == pytest.approx(loss(expected), rel=1e-4)
    models = [load_run(run, prefer=["last.pt"])[1].model for run in (expected, tmp_path / "compiled")]
    assert list(models[0]) == list(models[1])
    for name, weights in models[0].items():
        assert (models[1][name] - weights).abs().max() < 1e-3, name
    # Which proposals and matches are best may change with rounding.
    assert loss(tmp_path / "bfloat16") == pytest.approx(loss(expected), rel=0.05)
    assert loss(tmp_path / "bfloat16") != loss(expected)
