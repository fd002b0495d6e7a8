"""Names that PyTorch and related packages do not document, each with a public fallback of the same result.

Every name is looked up once, when this module is imported, and used nowhere else. If a release removes one, the library
computes the same results by a slower route.
"""

import ctypes
import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

_count_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
_list_transforms = getattr(getattr(torch._C, "_functorch", None), "get_interpreter_stack", None)
_has_storage = getattr(torch._C, "_has_storage", None)
_linear_pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_extension = getattr(getattr(torch, "_C", None), "__file__", None)

_Layer = TypeVar("_Layer", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS: list[Any] = [getattr(nn.modules.module, f"_global{hooks}", None) for hooks in _HOOKS]
_SHOWS_HOOKS = None not in _GLOBAL_HOOKS and all(hasattr(nn.Identity(), hooks) for hooks in _HOOKS)


def _own_forward(kind: type[nn.Module]) -> Any:
    """Return the original `forward` of a class; None if it had been replaced before this module was imported."""
    code = getattr(kind.forward, "__code__", None)
    is_own = code is not None and code.co_filename == kind.__init__.__code__.co_filename
    return kind.forward if is_own else None


# The function that `forward` of each of these layers calls, unless it has been replaced.
_FUNCTIONS: dict[type[nn.Module], str] = {nn.Conv2d: "conv2d", nn.Dropout: "dropout", nn.Linear: "linear"}
_RUNS = {kind: (_own_forward(kind), getattr(F, function)) for kind, function in _FUNCTIONS.items()}


def has_dispatch_modes() -> bool | None:
    """Return whether a `TorchDispatchMode`, such as a counter of operations, is active; None if PyTorch hides it."""
    return None if _count_dispatch_modes is None else _count_dispatch_modes() > 0


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` is active; True if PyTorch hides it."""
    return _list_transforms is None or bool(_list_transforms())


def has_higher_derivatives() -> bool:
    """Return whether transforms of `torch.func` differentiate in forward mode, or twice.

    False if PyTorch hides them: these derivatives then raise. True would send every call to the slow reference.
    """
    transforms = _list_transforms() if _list_transforms else None
    if not transforms:
        return False
    kinds = [transform.key().name for transform in transforms]
    return "Jvp" in kinds or kinds.count("Grad") > 1


def has_tangent(*tensors: Tensor) -> bool:
    """Return whether a tensor carries a forward-mode derivative, which autograd functions have no formula for."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)  # type: ignore[no-untyped-call]


def has_storage(tensor: Tensor) -> bool:
    """Return whether a tensor has memory of its own; mapped ones have none. False if PyTorch hides it."""
    return _has_storage is not None and bool(_has_storage(tensor))


def is_plain(layer: nn.Module, kind: type[_Layer]) -> TypeGuard[_Layer]:
    """Return whether calling the layer runs PyTorch's `kind` and nothing else: no hooks, no other `forward`.

    False if PyTorch hides its hooks.
    """
    return (
        type(layer) is kind
        and "forward" not in layer.__dict__
        and _runs_as_made(kind)
        and _SHOWS_HOOKS
        and not (
            layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or any(_GLOBAL_HOOKS)
        )
    )


def _runs_as_made(kind: type[nn.Module]) -> bool:
    """Return whether `forward` of a layer class, and the function that it calls, are PyTorch's own."""
    if kind not in _RUNS:
        return True
    forward, function = _RUNS[kind]
    return kind.forward is forward and getattr(F, _FUNCTIONS[kind]) is function


def multiply_by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `a @ b.T + bias` by oneDNN, as `torch.compile` does for constant weights.

    Anything but a product of float32 matrices goes to `torch.nn.functional.linear`, which names wrong shapes. oneDNN
    would read past the end of tensors that do not fit.
    """
    fits = (
        a.ndim == b.ndim == 2
        and a.shape[1] == b.shape[1] > 0
        and (bias is None or bias.shape == b.shape[:1])
        and all(tensor.dtype == torch.float32 for tensor in (a, b, bias) if tensor is not None)
    )
    if _linear_pointwise is None or not fits:
        return F.linear(a, b, bias)
    product: Tensor = _linear_pointwise(a, b, bias, "none", [], "")
    return product


def find_static_value() -> Callable[[Any], bool]:
    """Return a function that returns whether a size is the same at every call of the code being compiled.

    Looked up on demand, because it needs sympy, which only compilers load. If PyTorch hides it, no size is fixed.
    """
    shapes = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    function: Callable[[Any], bool] = getattr(shapes, "has_static_value", lambda size: False)
    return function


def find_openmp() -> Callable[..., Any] | None:
    """Return the function that GCC and Clang call for a parallel region, from PyTorch's own OpenMP runtime.

    Its arguments are a function, the argument of that function, the number of threads, and flags. None if PyTorch has
    no such runtime, or hides it.
    """
    function = None if _extension is None else getattr(ctypes.CDLL(_extension), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function


def onnxruntime_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that onnxruntime raises for a file or its inputs; `Exception` if it hides them."""
    try:
        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ModuleNotFoundError:
        return (Exception,)
    names = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name, Exception) for name in names)


def forward_attribute(part: nn.Module) -> str | None:
    """Return the attribute that replaces the `forward` of one module; None if something unknown wraps it.

    The package accelerate wraps `forward` to move tensors between devices, and calls the original that it keeps.
    """
    if "_old_forward" in vars(part):
        return "_old_forward"
    return None if isinstance(vars(part).get("forward"), functools.partial) else "forward"
