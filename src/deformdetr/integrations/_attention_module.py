"""Modules with the two functions of mmcv's attention, one for GPUs and one in plain PyTorch, which detrex took over."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from deformdetr.integrations._replacements import Replacements, StandIn
from deformdetr.integrations._sampling import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch


def install_into(
    module: str, extension: str, functions: Mapping[str, Callable[..., Any]], replacements: Replacements
) -> None:
    """Replace both functions of a module, and stand in for the extension that it imports if that is missing.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"{package} is not installed, so that nothing in it can be replaced", name=package)
    made = Replacements()
    try:
        if importlib.util.find_spec(extension) is None:
            made.place(StandIn(extension, functions))
        names = vars(importlib.import_module(module))
    except BaseException:
        made.undo()
        raise
    for ours in (MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch):
        made.replace(names, ours.__name__, ours)
    replacements.add(made)
