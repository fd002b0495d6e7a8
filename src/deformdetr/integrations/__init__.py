"""Bridges to other code: checkpoints of other implementations."""

from deformdetr.integrations._checkpoints import CheckpointError, CheckpointReport, load_checkpoint
from deformdetr.integrations._formats import CheckpointFormat, recognise
from deformdetr.integrations._hugging_face import from_hugging_face, to_hugging_face
from deformdetr.integrations._original import from_original, to_original

__all__ = [
    "CheckpointError",
    "CheckpointFormat",
    "CheckpointReport",
    "from_hugging_face",
    "from_original",
    "load_checkpoint",
    "recognise",
    "to_hugging_face",
    "to_original",
]
