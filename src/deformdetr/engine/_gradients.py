"""A check of the gradients of a model."""

from typing import NamedTuple

import torch
from torch import nn


class GradientReport(NamedTuple):
    """Names of parameters with unusual gradients."""

    missing: list[str]
    """Trained parameters without a gradient: the loss does not depend on them."""
    zero: list[str]
    """Parameters whose gradient is zero everywhere."""
    not_finite: list[str]
    """Parameters whose gradient has an infinite value or one that is not a number."""
    large: dict[str, float]
    """Root mean square of gradients that exceed the median of all parameters by the given factor, largest first."""
    median: float
    """Median over parameters of the root mean square of their gradients."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is unusual."""
        return not (self.missing or self.zero or self.not_finite or self.large)

    def __str__(self) -> str:
        large = [f"{name} ({value:.1e})" for name, value in self.large.items()]
        lines = [
            f"{title}: {', '.join(names)}"
            for title, names in (
                ("without a gradient", self.missing),
                ("with a gradient of zero", self.zero),
                ("with a gradient that is not finite", self.not_finite),
                (f"with a large gradient (median {self.median:.1e})", large),
            )
            if names
        ]
        return "\n".join(lines) or f"all gradients are usual (median {self.median:.1e})"


def check_gradients(model: nn.Module, *, large: float = 100.0) -> GradientReport:
    """Name the trained parameters whose gradients are missing, zero, not finite or large, after a backward pass.

    The size of a gradient is its root mean square.

    Args:
        model: The model. Frozen parameters are left out.
        large: Factor over the median of all parameters from which a gradient counts as large.

    Raises:
        ValueError: If no parameter has a gradient: call `backward` first.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from deformdetr.engine import check_gradients
        >>> model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(4, 2)})
        >>> model["used"](torch.rand(3, 4)).sum().backward()
        >>> check_gradients(model).missing
        ['unused.weight', 'unused.bias']
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name: parameter.grad for name, parameter in trained.items()}
    sizes = {
        name: float(torch.linalg.vector_norm(gradient.detach().double()) / max(1, gradient.numel()) ** 0.5)
        for name, gradient in gradients.items()
        if gradient is not None
    }
    if not sizes:
        raise ValueError(f"none of the {len(trained)} trained parameters has a gradient; call backward first")
    finite = {name: size for name, size in sizes.items() if size < float("inf")}
    nonzero = sorted(size for size in finite.values() if size > 0)
    median = nonzero[len(nonzero) // 2] if nonzero else 0.0
    by_size = sorted(finite.items(), key=lambda item: -item[1])
    return GradientReport(
        missing=[name for name in trained if name not in sizes],
        zero=[name for name, size in finite.items() if size == 0],
        not_finite=[name for name in sizes if name not in finite],
        large={name: size for name, size in by_size if size > large * median > 0},
        median=median,
    )
