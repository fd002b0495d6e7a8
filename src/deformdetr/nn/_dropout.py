"""Dropout whose random numbers cost little on CPUs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, which on CPUs draws 16 random bits for a number, where PyTorch draws a float64.

    The probability is rounded to a multiple of 2^-16 there, and what is kept is scaled by exactly that.
    """

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:  # noqa: A002
        """Set numbers to zero at random, in training."""
        dropped = round(self.p * 2**16)
        on_cpu = input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not on_cpu or not self.training or not 0 < dropped < 2**16:
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64, device=input.device).random_(-(2**63), None)
        kept = words.view(torch.int16)[: input.numel()].view(input.shape) >= dropped - 2**15
        return input * (kept * (2**16 / (2**16 - dropped))).to(input.dtype)
