"""Linear layers, by the fastest product of matrices that the CPU offers."""

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr import _compat
from deformdetr.nn import _onednn


def apply_linear(layer: nn.Module, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    """Return `layer(x)`, multiplied by oneDNN where that is faster and nothing can tell the difference.

    Parts of this library hold `torch.nn.Linear` itself and call it through here, so that whatever hooks, counts,
    adapts, prunes, quantizes or replaces linear layers finds them.
    """
    if (
        _compat.is_plain(layer, nn.Linear)
        and _onednn.serves(x, layer.weight, layer.bias)
        and x.ndim > 1
        and x.shape[-1] == layer.weight.shape[1]
    ):
        return _onednn.linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out
