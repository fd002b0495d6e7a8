"""Trainings in processes of their own, which tests kill, signal and starve, and the comparison of their files."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import zipfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from deformdetr._files import write_mapping
from deformdetr.engine import RunDirectory

# What has to survive: accumulation, averaged weights, dropout, augmentation in worker processes, checkpoints in epochs.
SETTINGS: dict[str, Any] = {
    "model": {
        "preset": "demo",
        "num_queries": 5,
        "num_feature_levels": 2,
        "d_model": 16,
        "n_heads": 2,
        "d_ffn": 16,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "norm_groups": 2,
        "dropout": 0.2,
        "backbone": {"channels": [8, 8, 8, 8]},
        "top_k": 5,
    },
    "data": {
        "kind": "shapes",
        "num_train": 10,
        "num_val": 2,
        "image_size": 64,
        "num_workers": 1,
        "augment": {
            "color": {},
            "zoom_out": {},
            "short_sides": [48, 64],
            "max_size": 96,
            "crop_resize": [48],
            "crop_min": 32,
            "crop_max": 48,
        },
    },
    "train": {
        "epochs": 2,
        "batch_size": 2,
        "accumulate_steps": 2,
        "lr": 1e-3,
        "ema": {"decay": 0.9},
        "save_every_steps": 1,
    },
}
_FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove"}


class Training:
    """A training in a process of its own.

    Args:
        run: Run directory. A run in it is resumed.
        folder: Folder for its config and its output, by default that of the run directory.
        kill_at: The process kills itself before this access to a file of the run directory, from 1; 0 for never.
        file_size: Limit of the files that it writes, in bytes.
    """

    def __init__(
        self, run: Path, *, folder: Path | None = None, kill_at: int = 0, file_size: int | None = None
    ) -> None:
        folder = run.parent if folder is None else folder
        self._output = folder / f"{run.name}.txt"
        self._output.unlink(missing_ok=True)
        config = folder / f"{run.name}.json"
        write_mapping(config, SETTINGS)
        context = multiprocessing.get_context("forkserver")
        # Imported once, before any thread is started.
        context.set_forkserver_preload(["deformdetr.cli._commands", "accelerate", "matplotlib.figure", "numba"])
        self.process: ForkServerProcess = context.Process(
            target=_train, args=(config, run, self._output, kill_at, file_size)
        )
        self.process.start()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def message(self) -> str:
        """What it has written to standard error."""
        return "\n".join(line for line in self.output.splitlines() if line.startswith("deformdetr: "))

    def wait_for(self, text: str) -> None:
        """Wait until it has written a text, or has ended."""
        while self.process.is_alive() and text not in self.output:
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.process.is_alive():
            os.kill(self.process.pid or 0, number)

    def end(self) -> int:
        """Wait until it has ended, and return its exit status, negative after a signal."""
        self.process.join(300)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(self.output)
        # The workers of a killed process may complain.
        assert self.process.exitcode == -signal.SIGKILL or "Traceback" not in self.output, self.output
        return self.process.exitcode


def _train(config: Path, run: Path, output: Path, kill_at: int, file_size: int | None) -> None:
    from deformdetr.cli import main

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    # As in a command: workers are its children, and notice when it dies.
    multiprocessing.set_start_method("fork", force=True)
    # Its own group, so that what it leaves behind can be ended with it.
    os.setpgid(0, 0)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    accesses = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal accesses
        if event in _FILE_EVENTS and str(arguments[0]).startswith(f"{run}/"):
            accesses += 1
            if accesses == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(count)
    sys.exit(main(["train", str(config), "--output", str(run), "--resume"]))


def train_whole(run: Path) -> float:
    """Train without a fault, and return how many seconds it took."""
    started = time.monotonic()
    assert Training(run).end() == 0
    return time.monotonic() - started


def kill_until_finished(run: Path, draw: random.Random, *, kills: int, seconds: float) -> int:
    """Kill a training at random moments and accesses to files, resume it, and return how often it was killed.

    Args:
        run: Run directory.
        draw: Source of the moments.
        kills: How often to kill it at most.
        seconds: How long a training takes without a fault.
    """
    for done in range(kills):
        by_time = draw.random() < 0.5
        training = Training(run, kill_at=0 if by_time else draw.randint(1, 60))
        if by_time:
            training.process.join(draw.uniform(0, 0.8 * seconds))
            training.signal(signal.SIGKILL)
        status = training.end()
        if status != -signal.SIGKILL:
            assert status == 0, training.output
            return done
    training = Training(run)
    assert training.end() == 0, training.output
    return kills


def damage(path: Path, draw: random.Random) -> None:
    """Cut a file short, or change a byte in it, as a new file of the same name."""
    content = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        del content[draw.randrange(len(content)) :]
    else:
        # Within an entry: between entries lie names and alignment, where a byte may mean nothing.
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            start = content.index(archive.read(largest))
        content[start + draw.randrange(largest.file_size)] ^= 0xFF
    unfinished = path.with_name(".damaged")
    unfinished.write_bytes(bytes(content))
    unfinished.replace(path)


def assert_same_run(run: Path, expected: Path, *, ignored: str = "") -> None:
    """Compare the weights, optimizers and metrics of two runs bit for bit, and the names of their files.

    An entry of checkpoints may be ignored.
    """
    one, two = RunDirectory(run), RunDirectory(expected)
    assert {file.name for file in run.iterdir()} == {file.name for file in expected.iterdir()}
    for name in ("last", "best", "previous"):
        contents = [torch.load(getattr(each, name), weights_only=True) for each in (one, two)]
        for content in contents:
            content.pop(ignored, None)
        if name != "previous":
            _assert_equal(*contents, name)
    rows = [[_without_times(row) for row in each.read_metrics()] for each in (one, two)]
    assert rows[0] == rows[1]


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}


def _assert_equal(one: Any, two: Any, name: str) -> None:
    assert type(one) is type(two), name
    if isinstance(one, dict):
        assert one.keys() == two.keys(), name
        for key, value in one.items():
            _assert_equal(value, two[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), name
        for index, (first, second) in enumerate(zip(one, two, strict=True)):
            _assert_equal(first, second, f"{name}.{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), name
    else:
        assert one == two, name
