"""Refusal of models that cannot fit into memory."""

import os

import pytest
import torch

from deformdetr.engine import ConfigError, Experiment, _model_memory, train
from experiments import SETTINGS as TINY
from experiments import tiny_experiment


def test_models_that_exceed_the_memory_are_refused_by_name(tmp_path):
    model = TINY["model"] | {"d_model": 16384, "num_queries": 100_000, "d_ffn": 16384, "num_encoder_layers": 40}
    with pytest.raises(ConfigError, match=r"the model needs [\d,.]+ GB to train .* its largest parameters are \w+\."):
        train(Experiment.model_validate(TINY | {"model": model}), tmp_path / "run")


def test_frozen_parts_of_a_model_need_no_memory_for_training(monkeypatch):
    experiment, cpu = tiny_experiment(), torch.device("cpu")
    # 20,549 weights of 4 bytes, four times that with gradients and averages.
    monkeypatch.setattr(_model_memory, "_memory", lambda device: 200_000)
    with pytest.raises(ConfigError, match=r"the model needs .* its largest parameters"):
        _model_memory.refuse_large_model(experiment, cpu)
    heads = experiment.train.replace(trainable=("class_heads",))
    _model_memory.refuse_large_model(experiment.replace(train=heads), cpu)


def test_averaged_weights_need_memory_too(monkeypatch):
    cpu = torch.device("cpu")
    weights = sum(parameter.nbytes for parameter in tiny_experiment().model.build().parameters())
    monkeypatch.setattr(_model_memory, "_memory", lambda device: int(4.5 * weights))
    _model_memory.refuse_large_model(tiny_experiment(), cpu)
    with pytest.raises(ConfigError, match=r"the model needs .* this process may use .* of cpu"):
        _model_memory.refuse_large_model(tiny_experiment(ema={}), cpu)


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "700", "memory.max": "900"}, [700, 900]),
        ("0::/elsewhere\n", {"memory.max": "900"}, [900]),
        ("0::/\n", {"memory.max": "900"}, [900]),
        ("0::/\n", {}, []),
        ("3:cpu:/a\n2:x,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "800", "cpu/a/memory.max": "1"}, [800]),
    ],
)
def test_limits_of_control_groups_are_found(groups, files, limits, tmp_path):
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert list(_model_memory._limits(tmp_path / "groups", tmp_path / "root")) == limits
    assert list(_model_memory._limits(tmp_path / "missing", tmp_path / "root")) == []


def test_memory_is_that_of_the_machine_or_less():
    assert 0 < _model_memory._memory(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
