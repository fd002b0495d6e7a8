"""Checkpoints of other implementations, and other code that runs this library's operator.

* Checkpoints: the functions of this module (private package `_checkpoints`, whose docstring shows the way through it),
  and `hub` for the Hugging Face Hub.
* Deformable attention of other packages run by this library's operator: `extension` replaces the compiled extension
  that repositories vendor, `mmcv` and `detrex` the functions of these packages, `transformers` accelerates its models.
  They share `_sampling` (the operator under other signatures), `_attention_module` and `_replacements` (putting
  functions into foreign modules and back).
* `export`: models as exported programs and ONNX files (private package `_export`).

Submodules are imported at their first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from deformdetr._files import locate_checkpoint
from deformdetr.integrations._checkpoints._classes import COCO_CATEGORY_IDS, select_classes
from deformdetr.integrations._checkpoints._convert import convert_checkpoint, save_checkpoint, translate_state_dict
from deformdetr.integrations._checkpoints._format import CheckpointFormat
from deformdetr.integrations._checkpoints._formats import from_hugging_face, from_original, to_hugging_face, to_original
from deformdetr.integrations._checkpoints._load import load_checkpoint
from deformdetr.integrations._checkpoints._reports import CheckpointReport, ConversionReport
from deformdetr.integrations._checkpoints._weights import CheckpointError, recognize

if TYPE_CHECKING:
    from deformdetr.integrations import detrex as detrex
    from deformdetr.integrations import export as export
    from deformdetr.integrations import extension as extension
    from deformdetr.integrations import hub as hub
    from deformdetr.integrations import mmcv as mmcv
    from deformdetr.integrations import transformers as transformers

__all__ = [
    "COCO_CATEGORY_IDS",
    "CheckpointError",
    "CheckpointFormat",
    "CheckpointReport",
    "ConversionReport",
    "convert_checkpoint",
    "from_hugging_face",
    "from_original",
    "load_checkpoint",
    "locate_checkpoint",
    "recognize",
    "save_checkpoint",
    "select_classes",
    "to_hugging_face",
    "to_original",
    "translate_state_dict",
]

_SUBMODULES = ("detrex", "export", "extension", "hub", "mmcv", "transformers")

# Hidden from type checkers, for which a module with this function has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a submodule."""
        if name in _SUBMODULES:
            return importlib.import_module(f"deformdetr.integrations.{name}")
        raise AttributeError(f"module 'deformdetr.integrations' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List public names and submodules, without this file's own imports."""
    return sorted({*__all__, *_SUBMODULES, *(name for name in globals() if name.startswith("__"))})
