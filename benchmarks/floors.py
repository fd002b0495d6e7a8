"""What no implementation of the operator can fall below: the bytes that have to cross a GPU's memory bus."""

from benchmarks.cases import Direction, Dtype, OperatorCase

ITEM_SIZE: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# Bytes per second of a large copy, reads and writes counted; by `torch.cuda.get_device_name()`.
BANDWIDTH = {"NVIDIA H200": 4.3e12}


def floor_bytes(case: OperatorCase, dtype: Dtype, direction: Direction = "forward", *, fused: bool = False) -> float:
    """Count every byte of input and output once: value and attention in `dtype`, places in float32.

    Of the value only rows (the channels of one head at one pixel) that are sampled are read; their expected number
    follows from corners that fall anywhere in their level. The backward reads what the forward read and the output's
    gradient, and writes all gradients.

    Args:
        fused: Offsets and logits in `dtype`, and one reference point per query and level in float32, instead of
            locations and weights.
    """
    if direction == "forward_backward":
        return sum(floor_bytes(case, dtype, part, fused=fused) for part in ("forward", "backward"))
    if direction not in ("forward", "backward"):
        raise ValueError(f"the operator has no direction {direction!r}")
    item = ITEM_SIZE[dtype]
    samples = case.batch * case.n_queries * case.heads * len(case.levels) * case.points
    output = case.batch * case.n_queries * case.heads * case.channels * item
    places = samples * 2 * (item if fused else 4) + samples * item
    references = case.batch * case.n_queries * len(case.levels) * 2 * 4 if fused else 0
    read = _sampled_rows(case) * case.channels * item + places + references
    if direction == "forward":
        return read + output
    grad_value = case.batch * case.pixels * case.heads * case.channels * item
    return read + output + grad_value + places


def floor_seconds(
    case: OperatorCase, dtype: Dtype, direction: Direction, bandwidth: float, *, fused: bool = False
) -> float:
    """Give the time that the floor's bytes take at a bandwidth in bytes per second."""
    return floor_bytes(case, dtype, direction, fused=fused) / bandwidth


def _sampled_rows(case: OperatorCase) -> float:
    corners = 4 * case.batch * case.n_queries * case.heads * case.points
    rows = [case.batch * case.heads * height * width for height, width in case.levels]
    # All corners miss a row with probability (1 - 1 / rows)^corners.
    return sum(number * (1 - (1 - 1 / number) ** corners) for number in rows)
