"""Perceptrons that act on each position independently."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr.kernels._layers import apply_dropout, apply_linear


class FeedForward(nn.Module):
    """The two-layer perceptron of a transformer layer, without residual connection or norm.

    Args:
        d_model: Channels in and out.
        d_ffn: Hidden channels.
        dropout: Probability of dropping a hidden activation.
        activation: Applied to the hidden channels; ReLU by default.

    Examples:
        >>> import torch
        >>> FeedForward(d_model=8, d_ffn=32)(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, d_model: int, d_ffn: int, *, dropout: float = 0.1, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.activation = nn.ReLU() if activation is None else activation
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.reset_parameters()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return the output of both layers, applied to the last axis."""
        hidden = self.activation(apply_linear(self.linear1, x))
        return apply_linear(self.linear2, apply_dropout(self.dropout, hidden))

    def reset_parameters(self) -> None:
        """Initialize weights by Xavier's uniform distribution; biases keep PyTorch's default."""
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        d_in: Channels in.
        d_hidden: Channels between the layers.
        d_out: Channels out.
        n_layers: Number of linear layers, at least one.

    Raises:
        ValueError: If `n_layers` is less than one.

    Examples:
        >>> import torch
        >>> MLP(d_in=8, d_hidden=16, d_out=4, n_layers=3)(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, d_in: int, d_hidden: int, d_out: int, n_layers: int) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"n_layers must be at least 1, got {n_layers}")
        widths = [d_in, *[d_hidden] * (n_layers - 1), d_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return the output of all layers, applied to the last axis."""
        *hidden, last = self.layers
        for layer in hidden:
            x = apply_linear(layer, x).relu()
        return apply_linear(last, x)
