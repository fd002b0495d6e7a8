"""The functions of `detrex.layers.multi_scale_deform_attn` by this library's operator."""

from deformdetr.integrations._attention_module import install_into
from deformdetr.integrations._replacements import Replacements
from deformdetr.integrations._sampling import (
    EXTENSION,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

__all__ = ["MultiScaleDeformableAttnFunction", "install", "multi_scale_deformable_attn_pytorch", "uninstall"]

_installed = Replacements()


def install(module: str = "detrex.layers.multi_scale_deform_attn") -> None:
    """Make detrex's attention run this library's operator.

    The functions are also replaced in modules that have imported them by name. If the compiled extension `_C` is
    missing, a module takes its place whose other operators raise when they are called. In this case, call `install`
    before the first import of detrex, which otherwise replaces its layer by a placeholder.

    Args:
        module: Name of the module; another one of the same layout is
            `groundingdino.models.GroundingDINO.ms_deform_attn`.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        RuntimeError: If the package was imported without its extension and replaced its layer by a placeholder.
        ValueError: If the module has neither of the functions.

    Examples:
        >>> install()  # doctest: +SKIP
        >>> from detrex.layers import MultiScaleDeformableAttention  # doctest: +SKIP
    """
    package = module.partition(".")[0]
    install_into(module, f"{package}._C", EXTENSION, _installed)


def uninstall() -> None:
    """Undo every `install()`, except in modules that have imported the functions by name since.

    Examples:
        >>> uninstall()
    """
    _installed.undo()
