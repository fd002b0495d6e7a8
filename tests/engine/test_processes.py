"""A single process. Several are tested with the command line."""

import pytest
import torch

from deformdetr.engine import ConfigError, Processes, train
from deformdetr.engine._launcher import check_launcher
from experiments import tiny_experiment


def test_a_single_process_communicates_with_itself():
    processes = Processes()
    assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
    assert processes.mean({"a": 1.5, "b": -2.0}) == {"a": 1.5, "b": -2.0}
    assert processes.gather({"x": [1]}) == [{"x": [1]}]
    assert processes.broadcast("text") == "text"
    processes.wait()


def test_prepared_model_of_one_process_is_the_model():
    processes = Processes()
    model = torch.nn.Linear(2, 1).to(processes.device)
    prepared = processes.prepare(model)
    with processes.main_first(), processes.exchange(prepared, enabled=False):
        prepared(torch.ones(1, 2, device=processes.device)).sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharding_that_the_launcher_requests_is_refused(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=r"the launcher requests .*, but only data parallelism is supported"):
        Processes()


@pytest.mark.parametrize(
    ("variable", "value", "setting", "agreeing"),
    [
        ("MIXED_PRECISION", "bf16", "precision", "bfloat16"),
        ("MIXED_PRECISION", "fp8", "precision", None),
        ("DYNAMO_BACKEND", "INDUCTOR", "compile", True),
        ("GRADIENT_ACCUMULATION_STEPS", "3", "accumulate_steps", 3),
        ("GRADIENT_ACCUMULATION_STEPS", "auto", "accumulate_steps", None),
    ],
)
def test_what_the_launcher_requests_must_agree_with_the_settings(
    variable, value, setting, agreeing, tmp_path, monkeypatch
):
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(ConfigError, match=rf"{variable.lower()}: {value.lower()}, but train.{setting} is "):
        train(tiny_experiment(), tmp_path / "run")
    if agreeing is not None:
        check_launcher(tiny_experiment(**{setting: agreeing}).train)


def test_a_launcher_that_requests_only_processes_is_accepted(monkeypatch):
    for variable, value in (("MIXED_PRECISION", "no"), ("DYNAMO_BACKEND", "NO"), ("USE_FSDP", "false")):
        monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    check_launcher(tiny_experiment().train)
    assert Processes().world_size == 1
