"""What the choices in the CPU path are worth."""

import pytest
from benchmarks import cpu_choices
from benchmarks.cpu_choices import CASES, CHOICES, measure_choice


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.name}, {choice.instead_of}")
def test_a_choice_is_measured_in_both_directions_and_taken_back(choice, monkeypatch):
    plain, used = cpu_choices.ms_deform_attn, []
    monkeypatch.setattr(cpu_choices, "ms_deform_attn", lambda *args: used.append(args[0].dtype) or plain(*args))
    medians = measure_choice(choice, CASES[0].quick(), rounds=1)
    assert list(medians) == ["forward", "both"]
    assert all(time > 0 for pair in medians.values() for time in pair)
    # Three turns of two contenders, in two directions.
    assert len(used) == 12
    assert len(set(used)) == 1 + choice.convert


@pytest.mark.compile
def test_the_table_has_all_choices_and_the_compiled_layer(capsys):
    cpu_choices.main(["--quick", "--rounds", "1"])
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table[4:]] == [
        *(f"| {choice.name}" for choice in CHOICES),
        "| compiled layer",
    ]
