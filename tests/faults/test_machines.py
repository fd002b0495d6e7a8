"""Training on two machines, which are network namespaces joined by a cable that loses packets.

`pytest -m slow tests/faults/test_machines.py --examples 100` trains for a hundred epochs; without the option, for two.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from deformdetr.config import save_config
from deformdetr.data import SeededSampler, ShapesConfig, build_dataset
from deformdetr.engine import RunDirectory, evaluate_run, load_run, train
from experiments import tiny_experiment
from machines import start_training, two_machines, workers_of
from slow_training import SECONDS

pytestmark = pytest.mark.slow

_LOST_PACKETS = 0.05


@pytest.fixture
def machines():
    try:
        with two_machines() as made:
            yield made
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture
def experiments(pytestconfig):
    """Return equal trainings for one process and for two."""
    # 13 training and 5 evaluation images: neither divides evenly.
    data = ShapesConfig(num_train=13, num_val=5, image_size=64, min_objects=0, max_objects=1)
    epochs = pytestconfig.getoption("--examples") or 2
    one = tiny_experiment(epochs=epochs, batch_size=4, eval_every=epochs, save_every_steps=1)
    one = one.replace(data=data, model=one.model.replace(num_classes=3))
    return one, one.replace(train=one.train.replace(batch_size=2))


def empty_batches_of_one_process(experiment):
    """Return how often one process has no target in a step, and the other has."""
    dataset = build_dataset(experiment.data, "train")
    count = 0
    for epoch in range(experiment.train.epochs):
        sampler = SeededSampler(len(dataset), shuffle=True, seed=experiment.train.seed)
        sampler.set_epoch(epoch)
        order = [len(dataset[index.position][1]["labels"]) for index in sampler]
        steps = [order[start : start + 4] for start in range(0, len(order) - 3, 4)]
        count += sum((sum(step[0::2]) == 0) != (sum(step[1::2]) == 0) for step in steps)
    return count


def wait_for(path: Path, text: str = "") -> None:
    until = time.monotonic() + 240
    while not path.exists() or text not in path.read_text(errors="replace"):
        assert time.monotonic() < until, path
        time.sleep(0.05)


def kill_one_process(launchers, run):
    """Kill the process on the second machine after two checkpoints, and return when."""
    wait_for(run / "previous.pt")
    os.kill(workers_of(launchers[1])[0], signal.SIGKILL)
    return time.monotonic()


def test_two_machines_train_and_evaluate_as_one_process_does(tmp_path, machines, experiments, figures):
    one, two = experiments
    assert empty_batches_of_one_process(one)
    for machine in machines:
        machine.drop_packets(_LOST_PACKETS)
    save_config(two, tmp_path / "two.json")
    run, log = tmp_path / "two", tmp_path / "machine0.log"
    launchers = start_training(machines, tmp_path / "two.json", run, max_restarts=3)
    killed = kill_one_process(launchers, run)
    wait_for(log, "resuming after")
    seconds = time.monotonic() - killed
    alone = train(one, tmp_path / "one")
    codes = [launcher.wait(timeout=240) for launcher in launchers]
    assert codes == [0, 0], log.read_text()

    losses = [[row["loss"] for row in RunDirectory(each).read_metrics()] for each in (run, alone.run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    _, checkpoint = load_run(run, prefer=["last.pt"])
    for name, weights in load_run(alone.run, prefer=["last.pt"])[1].model.items():
        assert (weights - checkpoint.model[name]).abs().max() < 1e-3, name
    found = evaluate_run(run / "last.pt", output=tmp_path / "alone.json", num_worst=0)
    assert found.metrics == checkpoint.metrics
    dropped, sent = (sum(counts) for counts in zip(*(each.dropped_packets() for each in machines), strict=True))
    assert dropped
    differences = [abs(mine / theirs - 1) for mine, theirs in zip(*losses, strict=True)]
    figures.append(
        f"{checkpoint.step:,} steps on two machines, of which one sleeps {SECONDS} s in every step; {dropped:,} of "
        f"{sent:,} packets lost; a process killed, and all resumed {seconds:.1f} s later; losses of epochs within "
        f"{max(differences):.1e} of one process"
    )


def test_all_processes_end_soon_after_one_has_died(tmp_path, machines, experiments, figures):
    save_config(experiments[1], tmp_path / "two.json")
    launchers = start_training(machines, tmp_path / "two.json", tmp_path / "two", max_restarts=0)
    killed = kill_one_process(launchers, tmp_path / "two")
    codes = [launcher.wait(timeout=120) for launcher in launchers]
    figures.append(f"a process killed: all launchers without restarts ended within {time.monotonic() - killed:.1f} s")
    assert codes == [1, 1]
