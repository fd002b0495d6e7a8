"""The functions of `mmcv.ops.multi_scale_deform_attn`, and how to put them into mmcv."""

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

    Modules that have imported the functions by name are served too. Where mmcv has no compiled operators, as in
    mmcv-lite, `mmcv.ops` imports nevertheless, and every other compiled operator raises when it is called.

    Raises:
        ModuleNotFoundError: If mmcv is not installed.
    """
    install_into("mmcv.ops.multi_scale_deform_attn", "mmcv._ext", EXTENSION_OF_MMCV, _installed)


def uninstall() -> None:
    """Undo `install()`, but for modules that have imported the functions by name since."""
    _installed.undo()
