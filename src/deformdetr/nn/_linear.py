"""The linear layer that all others are built from."""

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr.nn import _onednn


class Linear(nn.Linear):
    """`torch.nn.Linear`, by the fastest product of matrices that the CPU offers.

    A subclass, so that whatever hooks, counts, adapts or replaces linear layers finds one.
    """

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:  # noqa: A002
        """Apply the layer to the last axis."""
        if input.ndim > 1 and _onednn.serves(input, self.weight, self.bias):
            return _onednn.linear(input, self.weight, self.bias)
        return super().forward(input)
