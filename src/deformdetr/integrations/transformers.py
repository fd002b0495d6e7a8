"""This library's operator in models of the transformers package.

Their deformable attention samples in one of three ways, which are recognized by names and arguments, so that no list of
models is needed:

* a module `MultiScaleDeformableAttention`, whose forward transformers can take from its hub of kernels,
* a function in an attribute of a layer,
* a global function of the layer's module.
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
    """The changes that `accelerate` made to a model; a context manager that undoes them on exit.

    Examples:
        >>> acceleration = accelerate(model)  # doctest: +SKIP
        >>> print(acceleration)  # doctest: +SKIP
        >>> acceleration.undo()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.accelerated: list[str] = []
        """Names of the submodules that run this library's operator now."""
        self.left: dict[str, str] = {}
        """Names of the submodules that are unchanged, and why."""
        self._replacements = Replacements()

    def undo(self) -> None:
        """Restore the model; further calls have no effect."""
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
    """Make the deformable attention of a transformers model run this library's operator.

    Parameters do not change; outputs and gradients change by rounding only. Other models do not change, even of the
    same class. Undo it before an export to a format without the operator.

    Args:
        model: A model of transformers, or any module that contains one.

    Returns:
        The changes. They last until `undo()`, or the end of `with accelerate(model): ...`.

    Raises:
        ValueError: If no submodule of the model is deformable attention.

    Examples:
        >>> from transformers import DeformableDetrForObjectDetection  # doctest: +SKIP
        >>> model = DeformableDetrForObjectDetection.from_pretrained("SenseTime/deformable-detr")  # doctest: +SKIP
        >>> with accelerate(model):  # doctest: +SKIP
        ...     outputs = model(images)
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
            result.left[name] = "it samples in an unknown way"
    if not result.accelerated and not result.left:
        raise ValueError(f"no submodule of {type(model).__name__} is multi-scale deformable attention")
    return result


def _accelerate_part(name: str, part: nn.Module, result: Acceleration) -> None:
    if type(part).__name__ == "MultiScaleDeformableAttention" and _have_same_parameters(type(part).forward, _forward):
        changes: dict[str, Callable[..., Any]] = {"forward": _forward}
    else:
        changes = _function_replacements(part)
    if not changes:
        return
    method = getattr(part, "method", getattr(part, "decoder_method", "default"))
    if method != "default":
        result.left[name] = f"it samples by the method {method!r}, and only bilinear sampling is supported"
        return
    own_forward = _compat.forward_attribute(part)
    if "forward" in changes and own_forward is None:
        result.left[name] = "its forward is wrapped in an unknown way"
        return
    for attribute, ours in changes.items():
        attribute = own_forward if own_forward and attribute == "forward" else attribute
        if getattr(vars(part).get(attribute), "__module__", None) != __name__:
            result._replacements.replace(vars(part), attribute, ours)
    result.accelerated.append(name)


def _function_replacements(part: nn.Module) -> dict[str, Callable[..., Any]]:
    """Return the attributes to set on a layer that stores or calls one of the known functions."""
    changes = {name: ours for name, value in vars(part).items() if (ours := _ours_for(value))}
    forward = type(part).forward
    if isinstance(forward, FunctionType):
        called = {name: _ours_for(forward.__globals__.get(name)) for name in forward.__code__.co_names}
        if replaced := {name: ours for name, ours in called.items() if ours}:
            changes["forward"] = MethodType(_with_globals(forward, replaced), part)
    return changes


def _with_globals(function: FunctionType, replaced: dict[str, Callable[..., Any]]) -> FunctionType:
    """Copy a function with other globals; those of its module are shared by all models."""
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
    """Return the replacement of a function, which may be a replacement already; None if it is not known."""
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
    return ours if ours and _have_same_parameters(function, ours) else None


def _have_same_parameters(theirs: Any, ours: Callable[..., Any]) -> bool:
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
    """Sample `num_points_list[i]` points on level i; `points` counts those of all levels."""
    if method != "default":
        raise ValueError(f"method changed to {method!r} after accelerate(), which supports only 'default'")
    return ms_deform_attn(
        value, value_spatial_shapes, sampling_locations, attention_weights, points_per_level=num_points_list
    )
