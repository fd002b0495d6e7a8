"""Trainings that are killed, signaled and damaged end up as if nothing had happened, bit for bit.

`pytest -m slow tests/faults/test_killed_trainings.py --examples 100` kills a hundred times; without the option, a few.
"""

import random
import signal

import pytest

from fragile_runs import Training, assert_same_run, damage, kill_until_finished

pytestmark = pytest.mark.slow


def test_killed_trainings_resume_bit_for_bit(tmp_path, reference, seed, pytestconfig, figures):
    draw = random.Random(seed)
    wanted = pytestconfig.getoption("--examples") or 4
    done = runs = 0
    while done < wanted:
        run = tmp_path / f"run{runs}"
        done += kill_until_finished(run, draw, kills=min(8, wanted - done), seconds=reference.seconds)
        assert_same_run(run, reference.run)
        runs += 1
    figures.append(f"{done} kills in {runs} trainings, which all equal the one without, bit for bit")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_save_within_an_epoch_and_tell_so_in_one_line(tmp_path, reference, seed, number):
    draw = random.Random(seed)
    run = tmp_path / "run"
    training = Training(run)
    training.wait_for("starting in")
    training.process.join(draw.uniform(0, 0.3 * reference.seconds))
    training.signal(number)
    status = training.end()
    if status:
        assert status == 128 + number
        assert training.message.startswith(f"deformdetr: {signal.Signals(number).name} after step ")
        assert training.message.endswith(f"{run}/last.pt is saved, and `--resume` continues from it")
        resumed = Training(run)
        assert resumed.end() == 0
        assert f"resuming from {run}/last.pt" in resumed.output
    assert_same_run(run, reference.run)


def test_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path, reference, seed):
    draw = random.Random(seed)
    run = tmp_path / "run"
    training = Training(run)
    while training.process.is_alive() and not (run / "previous.pt").exists():
        training.process.join(0.01)
    training.signal(signal.SIGKILL)
    training.end()
    damage(run / "last.pt", draw)
    resumed = Training(run)
    assert resumed.end() == 0
    assert f"resuming from {run}/previous.pt" in resumed.output
    assert_same_run(run, reference.run)
