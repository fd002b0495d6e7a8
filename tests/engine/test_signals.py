"""Signals that ask a training to end."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from deformdetr.cli import main
from deformdetr.engine import TrainingInterrupted, load_run, train
from deformdetr.engine import _signals as engine_signals
from deformdetr.engine import _train as engine_train
from deformdetr.engine._signals import STOP_SIGNALS, StopSignals, leave_signals_to_parent
from deformdetr.losses import SetCriterion
from experiments import tiny_experiment
from fragile_runs import assert_same_run


@pytest.fixture(autouse=True)
def _shell_in_the_foreground() -> Iterator[None]:
    """Restore usual handlers: what a shell starts in the background ignores SIGINT, and below `nohup` SIGHUP."""
    usual = dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_is_noted_and_handlers_return(number):
    before = handlers()
    with StopSignals() as signals:
        assert not signals.received
        os.kill(os.getpid(), number)
        # A launcher repeats it at once.
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert handlers() == before


def test_second_signal_after_a_while_has_its_usual_effect(monkeypatch):
    monkeypatch.setattr(engine_signals, "_SECONDS_OF_REPEATS", 0.05)

    def interrupt_twice():
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.06)
            os.kill(os.getpid(), signal.SIGINT)

    before = handlers()
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert handlers() == before


def test_ignored_signals_stay_ignored_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    found = []

    def enter():
        with StopSignals():
            found.append(handlers())

    before = handlers()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]


def load_for_ever(ready):
    leave_signals_to_parent()
    ready.set()
    while True:
        time.sleep(60)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_load_data_end_for_their_parent_alone(method):
    context = multiprocessing.get_context(method)
    ready = context.Event()
    process = context.Process(target=load_for_ever, args=(ready,), daemon=True)
    process.start()
    assert ready.wait(60)
    for number in STOP_SIGNALS:
        subprocess.run(["kill", f"-{int(number)}", str(process.pid)], check=True)
    process.join(0.3)
    assert process.is_alive()
    # As `multiprocessing` does when a training ends with its loaders still open.
    process.terminate()
    process.join(30)
    assert process.exitcode == 0


def signal_in_step(monkeypatch, step, number):
    calls = []
    forward = SetCriterion.forward

    def signaled(self, outputs, targets, **others):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return forward(self, outputs, targets, **others)

    monkeypatch.setattr(SetCriterion, "forward", signaled)


def test_signaled_training_saves_after_the_step_and_resumes_bit_for_bit(tmp_path, monkeypatch, finished_run):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, 5, signal.SIGTERM)
        with pytest.raises(TrainingInterrupted, match=r"^SIGTERM after step 5: .*last\.pt is saved") as interrupted:
            train(tiny_experiment(), run)
    assert interrupted.value.signal == signal.SIGTERM
    _, checkpoint = load_run(run, prefer=["last.pt"])
    assert (checkpoint.epoch, checkpoint.step) == (1, 5)
    train(tiny_experiment(), run, resume=True)
    assert_same_run(run, finished_run)


def test_signal_during_evaluation_saves_the_trained_epoch(tmp_path, monkeypatch, finished_run, capsys):
    run = tmp_path / "run"
    evaluate = engine_train.evaluate

    def signaled(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGHUP)
        return evaluate(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(engine_train, "evaluate", signaled)
        with pytest.raises(TrainingInterrupted, match="SIGHUP after step 3"):
            train(tiny_experiment(), run)
    assert load_run(run, prefer=["last.pt"])[1].epoch == 0
    capsys.readouterr()
    train(tiny_experiment(), run, resume=True)
    assert "resuming after step 3 in" in capsys.readouterr().out
    assert_same_run(run, finished_run)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_command_ends_with_one_line_and_the_status_of_the_signal(number, capsys, monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise TrainingInterrupted("saved", number)

    (tmp_path / "config.yaml").write_text("data: {kind: shapes}")
    monkeypatch.setattr("deformdetr.cli._commands.train", interrupt)
    assert main(["train", str(tmp_path / "config.yaml")]) == 128 + number
    assert capsys.readouterr().err == "deformdetr: saved\n"


def test_one_of_several_processes_has_the_message(capsys, monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise TrainingInterrupted("", signal.SIGTERM)

    (tmp_path / "config.yaml").write_text("data: {kind: shapes}")
    monkeypatch.setattr("deformdetr.cli._commands.train", interrupt)
    assert main(["train", str(tmp_path / "config.yaml")]) == 143
    assert capsys.readouterr().err == ""
