"""Modules whose weights are none of their initialization's, under which much is zero, uniform or the same."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def redrawn(module: Module, rng: torch.Generator, std: float = 0.3) -> Module:
    """Draw all parameters anew, and return the module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * std)
    return module


def shaken(module: Module, rng: torch.Generator) -> Module:
    """Change all parameters from their initialization, and return the module."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.2)
    return module
