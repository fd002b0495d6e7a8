"""Replacing the attention functions of mmcv's module, which detrex copied: one for GPUs, one in plain PyTorch."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from torch import nn

from deformdetr.integrations._replacements import Replacements, StandIn
from deformdetr.integrations._sampling import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch


def install_into(
    module: str, extension: str, functions: Mapping[str, Callable[..., Any]], replacements: Replacements
) -> None:
    """Replace both functions of a module everywhere, and the compiled extension if it is missing.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        RuntimeError: If the package was imported without its extension and replaced its layer by a placeholder.
        ValueError: If the module has neither function.
    """
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    made = Replacements()
    try:
        if not _exists(spec, extension):
            made.place(StandIn(extension, {**functions, "__getattr__": _raise_for_others(extension)}))
        attention = importlib.import_module(module)
        _check_layer(attention, extension)
        _replace_functions(attention, made)
    except BaseException:
        made.undo()
        raise
    replacements.add(made)


def _exists(package: ModuleSpec, extension: str) -> bool:
    """Return whether an extension can be found, without importing its package, which may import the extension."""
    if extension in sys.modules:
        return sys.modules[extension] is not None
    places = package.submodule_search_locations
    return any(finder.find_spec(extension, places) is not None for finder in sys.meta_path)


def _check_layer(attention: ModuleType, extension: str) -> None:
    """Raise if the layer of the module is a placeholder, which other modules may have imported by name."""
    layer = vars(attention).get("MultiScaleDeformableAttention")
    if layer is not None and not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        package = extension.partition(".")[0]
        raise RuntimeError(
            f"{attention.__name__} was loaded when {extension} could not be imported, and its layer "
            f"MultiScaleDeformableAttention is a placeholder since: install before the first import of {package}, and "
            f"remove a compiled {extension} that does not load"
        )


def _replace_functions(attention: ModuleType, replacements: Replacements) -> None:
    found = False
    for ours in (MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch):
        theirs = vars(attention).get(ours.__name__)
        if theirs is not None:
            replacements.replace_everywhere(theirs, ours)
            found = True
    if not found:
        raise ValueError(
            f"{attention.__name__} has neither {MultiScaleDeformableAttnFunction.__name__} nor "
            f"{multi_scale_deformable_attn_pytorch.__name__}, nothing can be replaced"
        )


def _raise_for_others(extension: str) -> Callable[[str], Callable[..., NoReturn]]:
    """Return the `__getattr__` of a module whose other operators raise when they are called.

    Packages look up all their operators when they are imported.
    """
    package = extension.partition(".")[0]

    def find(name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"{extension} has no attribute {name!r}")

        def refuse(*arguments: Any, **named: Any) -> NoReturn:
            raise NotImplementedError(
                f"{name} of {package} is not compiled; deformdetr stands in for deformable attention alone"
            )

        return refuse

    return find
