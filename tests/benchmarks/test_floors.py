"""Lower bounds of the bytes that the operator moves, compared with numbers computed by hand."""

import pytest
from benchmarks.cases import OPERATOR_CASES, OperatorCase
from benchmarks.floors import floor_bytes

# Two images of six pixels, each of which is a query: 2 x 6 x 2 heads x 2 levels x 2 points.
SMALL = OperatorCase("small", ((2, 2), (1, 2)), 2, heads=2, channels=3, points=2)
SAMPLES = 96


def test_every_byte_of_a_small_encoder_is_counted():
    # Each level has 4 x 2 x 6 x 2 x 2 = 192 corners, so that few of its 16 or 8 rows are missed.
    rows = 16 * (1 - (15 / 16) ** 192) + 8 * (1 - (7 / 8) ** 192)
    value = output = 2 * 6 * 6
    read = rows * 3 * 4 + SAMPLES * 8 + SAMPLES * 4
    forward = read + output * 4
    backward = read + output * 4 + value * 4 + SAMPLES * 8 + SAMPLES * 4
    assert floor_bytes(SMALL, "float32") == pytest.approx(forward)
    assert floor_bytes(SMALL, "float32", "backward") == pytest.approx(backward)
    assert floor_bytes(SMALL, "float32", "forward_backward") == pytest.approx(forward + backward)


def test_half_precision_halves_all_but_locations():
    half = (floor_bytes(SMALL, "float32") - SAMPLES * 8) / 2 + SAMPLES * 8
    assert floor_bytes(SMALL, "bfloat16") == pytest.approx(half)
    # Offsets in half precision, and one reference point in float32 for each of 12 queries and 2 levels.
    fused = half - SAMPLES * 8 + SAMPLES * 4 + 12 * 2 * 8
    assert floor_bytes(SMALL, "bfloat16", fused=True) == pytest.approx(fused)


# In millions of bytes: value, output, locations and weights, each rounded.
@pytest.mark.parametrize(
    ("name", "dtype", "direction", "megabytes"),
    [
        ("encoder_800x1333_b2", "float32", "forward", 45.5 + 45.5 + 45.5 + 22.8),
        ("encoder_800x1333_b2", "bfloat16", "backward", 2 * 22.8 + 22.8 + 2 * 45.5 + 2 * 11.4),
        # Half of the finest level's rows are sampled.
        ("decoder300_800x1333_b2", "bfloat16", "forward", 8.5 + 0.31 + 0.61 + 0.15),
        ("decoder300_800x1333_b2", "bfloat16", "backward", 8.5 + 0.31 + 22.8 + 2 * 0.61 + 2 * 0.15),
        ("rtdetr_decoder300_640x640_b16", "float32", "forward", 86.8 + 4.9 + 3.7 + 1.8),
    ],
)
def test_floors_of_the_cases(name, dtype, direction, megabytes):
    case = next(case for case in OPERATOR_CASES if case.name == name)
    assert floor_bytes(case, dtype, direction) / 1e6 == pytest.approx(megabytes, rel=0.01)


def test_a_direction_without_a_floor_is_refused():
    with pytest.raises(ValueError, match="training_step"):
        floor_bytes(SMALL, "float32", "training_step")
