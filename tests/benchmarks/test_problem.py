"""Errors of results, which decide whether a contender is timed."""

import math

import pytest
import torch
from benchmarks.problems.problem import largest_error


@pytest.mark.parametrize(
    ("output", "expected", "error"),
    [
        # By the norm 0.1 / 5, by the largest element 0.1 / 4.
        ([3.1, 4.0], [3.0, 4.0], 0.025),
        ([1.5] * 4, [1.0] * 4, 0.5),
        ([1.0, math.nan], [1.0, 1.0], math.inf),
        ([1.0, math.inf], [1.0, 1.0], math.inf),
        ([1.0] * 3, [1.0] * 2, math.inf),
        ([0.25], [0.0], 0.25),
        ([], [], 0),
    ],
)
def test_error_is_the_larger_of_two_relative_errors(output, expected, error):
    found = largest_error({"a": torch.tensor(output)}, {"a": torch.tensor(expected)})
    assert found == pytest.approx(error)


def test_the_worst_tensor_counts():
    expected = {"a": torch.ones(2), "b": torch.ones(2)}
    assert largest_error({"a": torch.ones(2), "b": torch.zeros(2)}, expected) == 1


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"\['a'\].*\['b'\]"):
        largest_error({"a": torch.ones(1)}, {"b": torch.ones(1)})
