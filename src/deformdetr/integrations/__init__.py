"""Bridges to other code: checkpoints of other implementations, and, in submodules, code that calls their operator."""

from deformdetr.integrations._checkpoints import load_checkpoint
from deformdetr.integrations._classes import COCO_CATEGORY_IDS, select_classes
from deformdetr.integrations._conversion import convert_checkpoint, save_checkpoint, translate_state_dict
from deformdetr.integrations._files import CheckpointError
from deformdetr.integrations._hugging_face import from_hugging_face, to_hugging_face
from deformdetr.integrations._lineage import CheckpointFormat
from deformdetr.integrations._original import from_original, to_original
from deformdetr.integrations._reports import CheckpointReport, ConversionReport
from deformdetr.integrations._wrappers import recognise

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
    "recognise",
    "save_checkpoint",
    "select_classes",
    "to_hugging_face",
    "to_original",
    "translate_state_dict",
]
