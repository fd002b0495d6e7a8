"""A config with slips in it is refused in one message, or works; within seconds, and without a traceback.

`pytest -m slow tests/faults/test_mutated_configs.py --examples 10000` tries so many; without the option, a few. The
files that pass validation train for a step, in processes of their own with limits of memory and processor time.
"""

import multiprocessing
import os
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from deformdetr.engine import ConfigError, Experiment, read_experiment
from fragile_runs import SETTINGS
from mutations import mutated_settings

pytestmark = pytest.mark.slow

_SECONDS_TO_READ = 10
_SECONDS_TO_TRAIN = 120
_MEMORY = 10 << 30


def test_mutated_configs_are_refused_in_one_message_or_train(tmp_path, seed, pytestconfig, figures):
    draw = random.Random(seed)
    short = SETTINGS | {"data": SETTINGS["data"] | {"num_workers": 0}}
    whole = Experiment.model_validate(short).model_dump(mode="json")
    found: Counter[str] = Counter()
    config = tmp_path / "config.yaml"
    for _ in range(pytestconfig.getoption("--examples") or 60):
        text = mutated_settings(draw.choice([whole, short]), draw)
        config.write_bytes(text.encode(errors="surrogatepass"))
        started = time.process_time()
        try:
            read_experiment(config)
        except ConfigError as error:
            _check_message(str(error))
            found["refused when read"] += 1
        else:
            found[_train(config, tmp_path / f"run{found.total()}")] += 1
        # Of this process alone, whatever else runs on the machine.
        assert time.process_time() - started < _SECONDS_TO_READ, text
    figures.append(f"{found.total():,} mutated configs: {dict(found)}")


def _check_message(message: str) -> None:
    assert 10 < len(message) < 10_000, message
    assert message.replace("\n", "").isprintable(), message


def _train(config: Path, run: Path) -> str:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deformdetr.cli._commands", "accelerate", "matplotlib.figure", "numba"])
    output = run.with_suffix(".txt")
    process = context.Process(target=_train_for_a_step, args=(config, run, output))
    process.start()
    # Longer than the limit of processor time, for one that waits.
    process.join(10 * _SECONDS_TO_TRAIN)
    if process.is_alive():
        process.kill()
        process.join()
    said = output.read_text()
    assert process.exitcode in (0, 2), (process.exitcode, config.read_text(), said)
    assert "Traceback" not in said, (config.read_text(), said)
    if process.exitcode == 0:
        return "trained"
    assert said.count("deformdetr: ") == 1, said
    return "refused later"


def _train_for_a_step(config: Path, run: Path, output: Path) -> None:
    from deformdetr.cli import main

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS_TO_TRAIN, _SECONDS_TO_TRAIN))
    # A hundred workers are valid, and would take the memory of the machine. Compiling takes minutes.
    options = ["--train.max_steps", "1", "--data.num_workers", "0", "--train.compile", "false"]
    sys.exit(main(["train", str(config), "--output", str(run), *options]))
