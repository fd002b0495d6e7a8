"""The arguments of other implementations, which differ in names, order and number."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Number of images that compiled extensions take at once, in most projects that call them.
_IM2COL_STEP = 64

# What a parameter gets, by the first of these that its name contains.
_PARTS = {
    "start": "starts",
    "shapes_list": "shapes_list",
    "shape": "shapes",
    "step": "step",
    "loc": "locations",
    "sampling": "locations",
    "weight": "weights",
    "value": "value",
    "img": "value",
}
_NEEDED = ("value", "locations", "weights")


class Adapter:
    """A function and the roles of its parameters.

    Args:
        function: Implementation: a function, a module, or the `apply` of an autograd function.
        convention: Names of its positional parameters, in order; without it, those of its signature. A name tells what
            the parameter gets: value, spatial shapes (as a tensor; in a `..._shapes_list`, as pairs of ints), level
            start indices, sampling locations, attention weights, or an `im2col_step`.

    Raises:
        TypeError: If a parameter's name does not tell what it gets.
    """

    def __init__(self, function: Callable[..., Any], convention: Sequence[str] | None = None) -> None:
        self.function = function
        self.name = _name(function)
        parameters = _parameters(function)
        self.takes_points_per_level = "points_per_level" in parameters
        names = _positional(parameters) if convention is None else convention
        self._roles = [_find_role(name) for name in names]
        unknown = [name for name, role in zip(names, self._roles, strict=True) if role is None]
        missing = [role for role in _NEEDED if role not in self._roles]
        if unknown or missing:
            raise TypeError(
                f"cannot tell what the parameters {', '.join(names)} of {self.name} get: pass their roles in order, "
                "such as convention=['value', 'spatial_shapes', 'level_start_index', 'sampling_locations', "
                "'attention_weights', 'im2col_step']"
            )

    def arguments(self, tensors: Sequence[Tensor], spatial_shapes: Sequence[tuple[int, int]]) -> list[Any]:
        """Return the positional arguments of a call with value, locations and weights."""
        value, locations, weights = tensors
        shapes = torch.tensor(spatial_shapes, device=value.device)
        areas = shapes.prod(1)
        given = {
            "value": value,
            "shapes": shapes,
            "shapes_list": [tuple(shape) for shape in spatial_shapes],
            "starts": areas.cumsum(0) - areas,
            "locations": locations,
            "weights": weights,
            "step": _IM2COL_STEP,
        }
        return [given[role] for role in self._roles if role is not None]


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__ or ''}.{named.__qualname__}".lstrip(".")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function, of a module's forward, or of an autograd function's, without its context."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        _, *rest = inspect.signature(owner.forward).parameters.items()
        return dict(rest)
    return dict(inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters)


def _positional(parameters: dict[str, inspect.Parameter]) -> list[str]:
    """Return the names of positional parameters, without those that may be left out and have no known role."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, parameter in parameters.items() if parameter.kind in kinds]
    while names and parameters[names[-1]].default is not inspect.Parameter.empty and _find_role(names[-1]) is None:
        names.pop()
    return names


def _find_role(name: str) -> str | None:
    return next((role for part, role in _PARTS.items() if part in name.lower()), None)
