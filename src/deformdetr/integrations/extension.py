"""A stand-in for the compiled extension that other repositories import, with nothing to compile."""

import sys
from collections.abc import Iterable

from deformdetr.integrations._replacements import Replacements, StandIn
from deformdetr.integrations._sampling import EXTENSION

__all__ = ["install", "uninstall"]

_installed = Replacements()


def install(*, names: Iterable[str] = (), replace: bool = False) -> None:
    """Let `import MultiScaleDeformableAttention` give this library's operator, on CPUs and GPUs and in any precision.

    Call it before the first import of the code that needs the extension. The module has the compiled one's two
    functions, `ms_deform_attn_forward` and `ms_deform_attn_backward`, with their arguments: `im2col_step` may be
    anything, and `level_start_index` is checked where that does not make the host wait for a GPU, or not passed at all,
    as by TrackFormer and TransTrack. A compiled extension that is installed and not imported yet is passed over.

    Args:
        names: More modules to stand in for, such as `groundingdino._C`.
        replace: Whether to put aside an extension that is imported already. Code that has imported it keeps it.

    Raises:
        RuntimeError: If one is imported already and `replace` is not set; nothing is installed then.
        TypeError: If `names` is a string.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be several names, got the string {names!r}")
    found = {name: sys.modules.get(name) for name in ("MultiScaleDeformableAttention", *names)}
    wanted = {name: module for name, module in found.items() if not isinstance(module, StandIn)}
    for name, module in wanted.items():
        if module is not None and not replace:
            raise RuntimeError(
                f"{name} is imported already, from {getattr(module, '__file__', None)}; install before that, or pass "
                "replace=True, which does not reach code that has imported it"
            )
    for name in wanted:
        _installed.place(StandIn(name, EXTENSION))


def uninstall() -> None:
    """Undo `install()`: what was imported before is back, and what was not is not found."""
    _installed.undo()
