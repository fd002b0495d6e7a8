"""Linear layers as this library calls them."""

import copy

from torch import Tensor, nn

from deformdetr.kernels._layers import apply_linear


class Applied(nn.Module):
    """Call a layer as this library's layers call theirs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(self.layer, x)


def pair(d_in: int, d_out: int, *, bias: bool = True) -> tuple[Applied, nn.Linear]:
    theirs = nn.Linear(d_in, d_out, bias=bias)
    return Applied(copy.deepcopy(theirs)), theirs
