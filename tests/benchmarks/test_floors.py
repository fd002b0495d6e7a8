"""The bytes that cannot be avoided, by numbers worked out by hand."""

import pytest
from benchmarks.cases import OPERATOR_CASES, OperatorCase
from benchmarks.floors import floor_bytes, floor_seconds

CASES = {case.name: case for case in OPERATOR_CASES}
# Two images of six pixels, each of which asks.
SMALL = OperatorCase(name="small", levels=((2, 2), (1, 2)), batch=2, heads=2, channels=3, points=2)


def test_every_byte_of_a_small_encoder_is_counted():
    # Samples: 2 images x 6 queries x 2 heads x 2 levels x 2 points. Corners per level: 4 x 2 x 6 x 2 x 2 = 192, so that
    # hardly a row of the 16 and the 8 there are is missed.
    samples = 96
    rows = 16 * (1 - (15 / 16) ** 192) + 8 * (1 - (7 / 8) ** 192)
    value, output = 2 * 6 * 6, 2 * 6 * 6
    read = rows * 3 * 4 + samples * 8 + samples * 4
    assert floor_bytes(SMALL, "float32") == pytest.approx(read + output * 4)
    backward = read + output * 4 + value * 4 + samples * 8 + samples * 4
    assert floor_bytes(SMALL, "float32", "backward") == pytest.approx(backward)
    both = floor_bytes(SMALL, "float32", "forward_backward")
    assert both == pytest.approx(read + output * 4 + backward)


def test_half_precision_halves_all_but_locations():
    samples = 96
    locations = samples * 8
    half = (floor_bytes(SMALL, "float32") - locations) / 2 + locations
    assert floor_bytes(SMALL, "bfloat16") == pytest.approx(half)


def test_fused_reads_offsets_in_half_precision_and_one_reference_per_query_and_level():
    samples, queries, levels = 96, 12, 2
    expected = floor_bytes(SMALL, "bfloat16") - samples * 8 + samples * 4 + queries * levels * 8
    assert floor_bytes(SMALL, "bfloat16", fused=True) == pytest.approx(expected)


# In millions of bytes: value, output, places and weights, each rounded.
@pytest.mark.parametrize(
    ("name", "dtype", "direction", "megabytes"),
    [
        ("encoder_800x1333_b2", "float32", "forward", 45.5 + 45.5 + 45.5 + 22.8),
        ("encoder_800x1333_b2", "bfloat16", "forward", 22.8 + 22.8 + 45.5 + 11.4),
        ("encoder_800x1333_b2", "bfloat16", "backward", 2 * 22.8 + 22.8 + 2 * 45.5 + 2 * 11.4),
        # Half of the finest level's rows are sampled at all.
        ("decoder300_800x1333_b2", "bfloat16", "forward", 8.5 + 0.31 + 0.61 + 0.15),
        ("decoder300_800x1333_b2", "bfloat16", "backward", 8.5 + 0.31 + 22.8 + 2 * 0.61 + 2 * 0.15),
        ("rtdetr_decoder300_640x640_b16", "float32", "forward", 86.8 + 4.9 + 3.7 + 1.8),
    ],
)
def test_floors_of_the_cases(name, dtype, direction, megabytes):
    assert floor_bytes(CASES[name], dtype, direction) / 1e6 == pytest.approx(megabytes, rel=0.01)


def test_floor_takes_its_bytes_time():
    case = CASES["encoder_800x1333_b2"]
    assert floor_seconds(case, "float32", "forward", 4.3e12) == pytest.approx(37e-6, rel=0.01)


def test_a_direction_without_a_floor_is_refused():
    with pytest.raises(ValueError, match="training_step"):
        floor_bytes(SMALL, "float32", "training_step")
