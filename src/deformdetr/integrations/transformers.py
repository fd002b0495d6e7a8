"""This library's operator in models of the transformers package.

Their deformable attention samples in one of three ways, told apart by names and arguments, so that models which are
not listed anywhere are served as well:

* a module `MultiScaleDeformableAttention`, whose forward transformers would take from its hub of kernels,
* a function that a layer keeps as an attribute,
* a function of the layer's module, called by name.
"""

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType, TracebackType
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from deformdetr import _compat
from deformdetr.integrations._replacements import Replacements
from deformdetr.kernels import SpatialShapes, ms_deform_attn

__all__ = ["Acceleration", "accelerate"]


class Acceleration:
    """What `accelerate` has done to a model, and the way back; a context manager that undoes it at its end."""

    def __init__(self) -> None:
        self.accelerated: list[str] = []
        """Names of the parts that now run this library's operator."""
        self.left: dict[str, str] = {}
        """Names of the parts that run as before, and why."""
        self._replacements = Replacements()

    def undo(self) -> None:
        """Let the model run as before; once is enough, and twice does no harm."""
        self._replacements.undo()

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"{len(self.accelerated)} accelerated:", *(f"  {name}" for name in self.accelerated)]
        if self.left:
            lines += [f"{len(self.left)} left as they were:", *(f"  {name}: {why}" for name, why in self.left.items())]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Acceleration:
    """Let a model of transformers run this library's operator wherever it samples deformably.

    Parameters, outputs and gradients stay what they were, up to rounding. Other models, of the same class too, are not
    touched. Undo it before an export to a format that does not know the operator.

    Args:
        model: One of transformers' models, or anything that holds parts of them.

    Returns:
        What was done. `with accelerate(model): ...` undoes it at the end; without `with`, it lasts.

    Raises:
        ValueError: If no part of the model is deformable attention.
    """
    result = Acceleration()
    for name, part in model.named_modules():
        _accelerate_part(name, part, result)
    for name, part in model.named_modules():
        known = [*result.accelerated, *result.left]
        below = f"{name}." if name else ""
        if type(part).__name__.lower().endswith("multiscaledeformableattention") and not any(
            other == name or other.startswith(below) for other in known
        ):
            result.left[name] = "it samples in a way that is not known here"
    if not result.accelerated and not result.left:
        raise ValueError(f"no part of {type(model).__name__} is multi-scale deformable attention")
    return result


def _accelerate_part(name: str, part: nn.Module, result: Acceleration) -> None:
    if type(part).__name__ == "MultiScaleDeformableAttention" and _takes_the_same(type(part).forward, _forward):
        changes: dict[str, Callable[..., Any]] = {"forward": _forward}
    else:
        changes = _changes_of_functions(part)
    if not changes:
        return
    method = getattr(part, "method", getattr(part, "decoder_method", "default"))
    if method != "default":
        result.left[name] = f"it samples by the method {method!r}, and only bilinear sampling is known here"
        return
    own_forward = _compat.forward_attribute(part)
    if "forward" in changes and own_forward is None:
        result.left[name] = "its forward is wrapped in a way that is not known here"
        return
    for attribute, ours in changes.items():
        attribute = own_forward if own_forward and attribute == "forward" else attribute
        if getattr(vars(part).get(attribute), "__module__", None) != __name__:
            result._replacements.replace(vars(part), attribute, ours)
    result.accelerated.append(name)


def _changes_of_functions(part: nn.Module) -> dict[str, Callable[..., Any]]:
    """Give the attributes to set on a layer that keeps or calls one of the known functions."""
    changes = {name: ours for name, value in vars(part).items() if (ours := _ours_for(value))}
    forward = type(part).forward
    if isinstance(forward, FunctionType):
        called = {name: _ours_for(forward.__globals__.get(name)) for name in forward.__code__.co_names}
        if replaced := {name: ours for name, ours in called.items() if ours}:
            changes["forward"] = MethodType(_with_globals(forward, replaced), part)
    return changes


def _with_globals(function: FunctionType, replaced: dict[str, Callable[..., Any]]) -> FunctionType:
    """Copy a function so that it sees other globals, because its module's own are every model's."""
    copy = FunctionType(
        function.__code__,
        function.__globals__ | replaced,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = __name__
    return copy


def _ours_for(function: Any) -> Callable[..., Any] | None:
    """Give the function to call in the place of another, which may be one of ours already."""
    if not isinstance(function, FunctionType):
        return None
    if function.__module__ == __name__:
        accelerated: Callable[..., Any] = function
        return accelerated
    known: dict[str, Callable[..., Any]] = {
        "multi_scale_deformable_attention": _sample,
        "multi_scale_deformable_attention_v2": _sample_lists,
    }
    ours = known.get(function.__name__)
    return ours if ours and _takes_the_same(function, ours) else None


def _takes_the_same(theirs: Any, ours: Callable[..., Any]) -> bool:
    names = [name for name in inspect.signature(theirs).parameters if name != "self"]
    return names == list(inspect.signature(ours).parameters)


def _forward(
    value: Float[Tensor, "batch pixels heads channels"],
    value_spatial_shapes: Int[Tensor, "levels 2"],
    value_spatial_shapes_list: Sequence[Sequence[int]],
    level_start_index: Int[Tensor, " levels"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    im2col_step: int,
) -> Float[Tensor, "batch queries heads*channels"]:
    return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _sample(
    value: Float[Tensor, "batch pixels heads channels"],
    value_spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def _sample_lists(
    value: Float[Tensor, "batch pixels heads channels"],
    value_spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Float[Tensor, "batch queries heads points 2"],
    attention_weights: Float[Tensor, "batch queries heads points"],
    num_points_list: Sequence[int],
    method: str = "default",
) -> Float[Tensor, "batch queries heads*channels"]:
    """Sample as many points of every level as the list says; `points` are those of all levels."""
    if method != "default":
        raise ValueError(f"method has become {method!r} since the model was accelerated, and only 'default' is known")
    return ms_deform_attn(
        value, value_spatial_shapes, sampling_locations, attention_weights, points_per_level=num_points_list
    )
