"""Display of progress on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from deformdetr.engine import ProgressDisplay
from deformdetr.engine import _progress as progress


def test_lines_without_a_terminal_have_step_status_and_time_left(monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with ProgressDisplay("epoch 1/2", 10, log_every=5, console=Console(file=out)) as display:
        for step in range(1, 11):
            display.update(step, status=f"loss {1 / step:.2f}")
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[:3] for line in lines] == [
        ["epoch 1/2", "5/10", "loss 0.20"],
        ["epoch 1/2", "10/10", "loss 0.10"],
    ]
    assert lines[0].endswith("left: 0:01:40")


def test_lines_come_at_most_every_ten_seconds():
    out = io.StringIO()
    with ProgressDisplay("epoch", 100, log_every=1, console=Console(file=out)) as display:
        for step in range(100):
            display.update(step)
    assert out.getvalue() == ""


def test_terminal_shows_a_bar_with_status():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with ProgressDisplay("epoch 1/2", 10, console=console) as display:
        display.update(4, status="loss 0.250")
        display.within("evaluating", 1, 3)
        display.say("epoch 1/2 is done")
    shown = out.getvalue()
    assert "4/10" in shown
    assert "loss 0.250" in shown
    assert "evaluating 1/3" in shown
    assert "epoch 1/2 is done" in shown


def test_silent_display_writes_nothing(capsys):
    with ProgressDisplay("epoch", 2, is_silent=True) as display:
        display.update(1, status="loss")
        display.say("line")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("line", ["[bold]brackets[/bold] stay", "x" * 300])
def test_lines_are_written_as_they_are(line):
    out = io.StringIO()
    with ProgressDisplay("epoch", 2, console=Console(file=out, width=40)) as display:
        display.say(line)
    assert out.getvalue() == line + "\n"
