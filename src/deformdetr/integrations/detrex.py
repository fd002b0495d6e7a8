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

    Call it before importing code that takes the functions from detrex by name. Where the package's compiled extension
    `_C` is missing, a stand-in takes its place.

    Args:
        module: Another one of the same layout, such as `groundingdino.models.GroundingDINO.ms_deform_attn`.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    package = module.partition(".")[0]
    install_into(module, f"{package}._C", EXTENSION, _installed)


def uninstall() -> None:
    """Undo every `install()` for whatever is imported later."""
    _installed.undo()
