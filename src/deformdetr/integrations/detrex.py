"""The functions of `detrex.layers.multi_scale_deform_attn`, and how to put them into detrex."""

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
    """Let detrex's attention, and what is built on it, run this library's operator.

    Modules that have imported the functions by name are served too. Where the package's compiled extension `_C` is
    missing, a stand-in takes its place, and every other compiled operator raises when it is called. detrex gives up its
    layer when it is imported without the extension: then call this before the first import of detrex.

    Args:
        module: Another one of the same layout, such as `groundingdino.models.GroundingDINO.ms_deform_attn`.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        RuntimeError: If the package was imported without its extension and has given up its layer.
        ValueError: If the module has neither of the functions.
    """
    package = module.partition(".")[0]
    install_into(module, f"{package}._C", EXTENSION, _installed)


def uninstall() -> None:
    """Undo every `install()`, but for modules that have imported the functions by name since."""
    _installed.undo()
