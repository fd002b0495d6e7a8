"""Bridges to other code: checkpoints of other implementations, and, in submodules, code that calls their operator.

The submodules are imported at their first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from deformdetr.integrations._checkpoints import load_checkpoint
from deformdetr.integrations._classes import COCO_CATEGORY_IDS, select_classes
from deformdetr.integrations._conversion import convert_checkpoint, save_checkpoint, translate_state_dict
from deformdetr.integrations._files import CheckpointError
from deformdetr.integrations._hugging_face import from_hugging_face, to_hugging_face
from deformdetr.integrations._lineage import CheckpointFormat
from deformdetr.integrations._original import from_original, to_original
from deformdetr.integrations._reports import CheckpointReport, ConversionReport
from deformdetr.integrations._wrappers import recognize

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
    "recognize",
    "save_checkpoint",
    "select_classes",
    "to_hugging_face",
    "to_original",
    "translate_state_dict",
]

_SUBMODULES = ("detrex", "export", "extension", "hub", "mmcv", "transformers")

# Not for type checkers, to which a module with this function has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a submodule."""
        if name in _SUBMODULES:
            return importlib.import_module(f"deformdetr.integrations.{name}")
        raise AttributeError(f"module 'deformdetr.integrations' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is offered, and not what this file imports for itself."""
    return sorted({*__all__, *_SUBMODULES, *(name for name in globals() if name.startswith("__"))})
