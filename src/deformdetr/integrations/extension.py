"""A replacement for the compiled extension that other repositories vendor, with nothing to compile."""

import sys
from collections.abc import Iterable

from deformdetr.integrations._replacements import Replacements, StandIn
from deformdetr.integrations._sampling import EXTENSION

__all__ = ["install", "uninstall"]

_installed = Replacements()


def install(*, names: Iterable[str] = (), replace: bool = False) -> None:
    """Make `import MultiScaleDeformableAttention` import this library's operator, for CPUs and GPUs in any precision.

    Call it before the first import of the code that needs the extension. The module has the two functions of the
    compiled one, `ms_deform_attn_forward` and `ms_deform_attn_backward`, with the same arguments. `im2col_step` is
    ignored. `level_start_index` is checked on the CPU, or may be missing, as in TrackFormer and TransTrack. A compiled
    extension that is installed is not used.

    Args:
        names: More modules to replace, such as `groundingdino._C`.
        replace: Whether to replace an extension that is imported already. Code that has imported it keeps it.

    Raises:
        RuntimeError: If an extension is imported already and `replace` is not set; nothing is installed then.
        TypeError: If `names` is a string.

    Examples:
        >>> install()
        >>> import MultiScaleDeformableAttention
        >>> MultiScaleDeformableAttention.ms_deform_attn_forward.__name__
        'ms_deform_attn_forward'
        >>> uninstall()
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a collection of names, got the string {names!r}")
    found = {name: sys.modules.get(name) for name in ("MultiScaleDeformableAttention", *names)}
    wanted = {name: module for name, module in found.items() if not isinstance(module, StandIn)}
    for name, module in wanted.items():
        if module is not None and not replace:
            raise RuntimeError(
                f"{name} is imported already, from {getattr(module, '__file__', None)}; install before that, or pass "
                "replace=True, which does not change code that has imported it"
            )
    for name in wanted:
        _installed.place(StandIn(name, EXTENSION))


def uninstall() -> None:
    """Undo `install()`: restore modules that were imported before, and remove the others.

    Examples:
        >>> install()
        >>> uninstall()
    """
    _installed.undo()
