"""Errors of outputs, as they are compared with tolerances."""

import math

import pytest
import torch
from benchmarks.agreement import largest_error


def test_error_is_the_larger_of_two_relative_ones():
    expected = {"a": torch.tensor([3.0, 4.0])}
    # By the norm 0.1 / 5, by the largest 0.1 / 4.
    assert largest_error({"a": torch.tensor([3.1, 4.0])}, expected) == pytest.approx(0.025)
    # By the norm 1 / 2, by the largest 0.5 / 1.
    spread = {"a": torch.ones(4)}
    assert largest_error({"a": torch.full((4,), 1.5)}, spread) == pytest.approx(0.5)


def test_worst_tensor_counts():
    expected = {"a": torch.ones(2), "b": torch.ones(2)}
    assert largest_error({"a": torch.ones(2), "b": torch.zeros(2)}, expected) == 1


@pytest.mark.parametrize("output", [torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf]), torch.ones(3)])
def test_what_cannot_be_compared_is_infinitely_wrong(output):
    assert largest_error({"a": output}, {"a": torch.ones(2)}) == math.inf


def test_nothing_expected_is_compared_absolutely():
    assert largest_error({"a": torch.tensor([0.25])}, {"a": torch.zeros(1)}) == 0.25
    assert largest_error({"a": torch.zeros(0)}, {"a": torch.zeros(0)}) == 0


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"\['a'\].*\['b'\]"):
        largest_error({"a": torch.ones(1)}, {"b": torch.ones(1)})
