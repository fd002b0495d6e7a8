"""The functions of `mmcv.ops.multi_scale_deform_attn`, and how to put them into mmcv."""

from collections.abc import Callable
from typing import Any, NoReturn

from deformdetr.integrations._attention_module import install_into
from deformdetr.integrations._replacements import Replacements
from deformdetr.integrations._sampling import (
    EXTENSION_OF_MMCV,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

__all__ = ["MultiScaleDeformableAttnFunction", "install", "multi_scale_deformable_attn_pytorch", "uninstall"]

_installed = Replacements()


def install() -> None:
    """Let mmcv's attention, and what is built on it, run this library's operator.

    Call it before importing code that takes the functions from mmcv by name. Where mmcv has no compiled operators, as
    in mmcv-lite, `mmcv.ops` imports nevertheless, and every other compiled operator raises when it is called.

    Raises:
        ModuleNotFoundError: If mmcv is not installed.
    """
    extension = EXTENSION_OF_MMCV | {"__getattr__": _absent}
    install_into("mmcv.ops.multi_scale_deform_attn", "mmcv._ext", extension, _installed)


def uninstall() -> None:
    """Undo `install()` for whatever is imported later."""
    _installed.undo()


def _absent(name: str) -> Callable[..., NoReturn]:
    """Give one of the many operators whose presence mmcv checks when it is imported."""
    if name.startswith("__"):
        raise AttributeError(f"mmcv._ext has no attribute {name!r}")

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name} of mmcv is not compiled; deformdetr stands in for deformable attention alone"
        )

    return refuse
