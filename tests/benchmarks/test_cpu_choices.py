"""What the choices in the CPU path are worth."""

from collections import Counter

import pytest
import torch
from benchmarks import cpu_choices
from benchmarks.cpu_choices import CASES, CHOICES, measure_choice

from deformdetr.kernels._numba import _large_pages, _launcher, _threads


def settings():
    """Return all that choices may change."""
    return _large_pages.LARGE, _launcher.SAMPLES_PER_TASK, _threads._openmp_parallel


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.name}, {choice.instead_of}")
def test_a_choice_is_measured_in_both_directions_and_taken_back(choice, monkeypatch):
    plain, before, seen = cpu_choices.ms_deform_attn, settings(), []

    def attend(value, *rest):
        seen.append((value.dtype, settings() == before))
        return plain(value, *rest)

    monkeypatch.setattr(cpu_choices, "ms_deform_attn", attend)
    medians = measure_choice(choice, CASES[0].quick(), rounds=1)
    assert list(medians) == ["forward", "both"]
    assert all(time > 0 for pair in medians.values() for time in pair)
    # Three turns of both, in two directions.
    other = (torch.float32, choice.convert)
    assert Counter(seen) == {(choice.dtype, True): 6, other: 6}
    assert settings() == before


@pytest.mark.compile
def test_the_table_has_all_choices_and_the_compiled_layer(capsys):
    cpu_choices.main(["--quick", "--rounds", "1"])
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table[4:]] == [
        *(f"| {choice.name}" for choice in CHOICES),
        "| compiled layer",
    ]
