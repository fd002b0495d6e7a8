"""Whether parameters look like draws from the distribution that they should come from."""

import math

from torch import Tensor


def fills_uniform_bound(tensor: Tensor, bound: float) -> bool:
    """Say whether values reach nearly to `bound` on both sides and not beyond; for some hundred values or more."""
    highest, lowest = tensor.max().item(), tensor.min().item()
    return 0.9 * bound < highest <= bound * (1 + 1e-6) and 0.9 * bound < -lowest <= bound * (1 + 1e-6)


def xavier_bound(fan_in: int, fan_out: int) -> float:
    """Bound of Xavier's uniform distribution with gain 1."""
    return math.sqrt(6 / (fan_in + fan_out))
