"""The functions of `mmcv.ops.multi_scale_deform_attn` by this library's operator."""

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
    """Make mmcv's attention run this library's operator.

    The functions are also replaced in modules that have imported them by name. Without compiled operators, as in
    mmcv-lite, `mmcv.ops` can be imported then, and other compiled operators raise when they are called.

    Raises:
        ModuleNotFoundError: If mmcv is not installed.

    Examples:
        >>> install()  # doctest: +SKIP
        >>> from mmcv.ops import MultiScaleDeformableAttention  # doctest: +SKIP
    """
    install_into("mmcv.ops.multi_scale_deform_attn", "mmcv._ext", EXTENSION_OF_MMCV, _installed)


def uninstall() -> None:
    """Undo `install()`, except in modules that have imported the functions by name since.

    Examples:
        >>> uninstall()
    """
    _installed.undo()
