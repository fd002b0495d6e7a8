"""A lower bound of the operator's time on a GPU: the bytes that have to cross the memory bus."""

from benchmarks.cases import Direction, Dtype, OperatorCase

ITEM_SIZE: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# Bytes per second, reads and writes, of a large copy, by `torch.cuda.get_device_name()`.
BANDWIDTH = {"NVIDIA H200": 4.3e12}


def floor_bytes(case: OperatorCase, dtype: Dtype, direction: Direction = "forward", *, fused: bool = False) -> float:
    """Count every byte of input and output once: value and weights in `dtype`, locations in float32.

    Of the value, only those rows (the channels of one head at one pixel) count that are sampled, by their expected
    number if the corners are uniform in their level. The backward reads what the forward reads and the gradient of the
    output, and writes all gradients.

    Args:
        fused: Whether offsets and logits in `dtype`, and one reference point per query and level in float32, are read
            instead of locations and weights.
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
    return read + output + case.batch * case.pixels * case.heads * case.channels * item + places


def _sampled_rows(case: OperatorCase) -> float:
    corners = 4 * case.batch * case.n_queries * case.heads * case.points
    rows = [case.batch * case.heads * height * width for height, width in case.levels]
    # All corners miss a row with probability (1 - 1 / rows)^corners.
    return sum(number * (1 - (1 - 1 / number) ** corners) for number in rows)
