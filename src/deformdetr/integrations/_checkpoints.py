"""Reading checkpoints into models, with an account of what fitted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deformdetr.integrations._classes import select_classes
from deformdetr.integrations._files import CheckpointError, read_tensors
from deformdetr.integrations._formats import find_lineage
from deformdetr.integrations._lineage import Lineage
from deformdetr.integrations._reports import CheckpointReport
from deformdetr.integrations._steps import has_masks, without_batch_counts
from deformdetr.integrations._variant import Variant

_CLASS_HEADS = ("class_heads.", "queries.class_head.", "class_head.")


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    classes: Sequence[int] | None = None,
    drop_class_head: bool = False,
    new_mask_head: bool = False,
    strict: bool = True,
) -> CheckpointReport:
    """Load a checkpoint of this library or of another implementation; its names tell which.

    Known are the originals of Deformable DETR and DETR, transformers of both, and mmdetection 2 and 3 and detrex of
    Deformable DETR.

    Args:
        model: A `DeformableDETR` of the checkpoint's variant, or a `DETR`.
        source: A state dict, or a file that holds one, by itself or as its entry `model` or `state_dict`:
            `.safetensors`, or anything else in PyTorch's format, of which only tensors and plain values are unpickled.
        classes: Which classes of the checkpoint to take, by their labels there; see `select_classes`. None: all.
        drop_class_head: Whether class heads of another number of classes are left as the model has them, to be trained.
        new_mask_head: Whether a mask head that the checkpoint lacks is left as the model has it, to be trained.
        strict: Whether anything missing, unexpected or mismatched is an error. Otherwise what fits is loaded.

    Returns:
        What was loaded and what was not; `print` it.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If the file is not a checkpoint of either model, or does not fit; nothing has been loaded then.
    """
    described = str(source) if isinstance(source, str | Path) else "the state dict"
    content = read_tensors(source)
    try:
        lineage = find_lineage(content)
        tensors = lineage.read(content).tensors
        if classes is not None:
            tensors = select_classes(tensors, classes)
    except ValueError as error:
        raise CheckpointError(f"{described}: {error}") from error
    # FrozenBatchNorm does not count batches, and trained BatchNorm does without the count.
    report, fitting = _compare(
        model, without_batch_counts(tensors), lineage, drop_class_head=drop_class_head, new_mask_head=new_mask_head
    )
    if strict and not report.fits:
        raise CheckpointError(f"{described} does not fit the model\n{report}")
    model.load_state_dict(fitting, strict=False)
    return report


def _compare(
    model: nn.Module, tensors: Mapping[str, Tensor], lineage: Lineage, *, drop_class_head: bool, new_mask_head: bool
) -> tuple[CheckpointReport, dict[str, Tensor]]:
    own = without_batch_counts(model.state_dict())
    fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
    differing = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    }
    dropped = {name: shapes for name, shapes in differing.items() if drop_class_head and name.startswith(_CLASS_HEADS)}
    missing = sorted(own.keys() - tensors.keys())
    is_new = new_mask_head and not has_masks(tensors)
    new = [name for name in missing if is_new and has_masks({name: own[name]})]
    report = CheckpointReport(
        format=lineage.format,
        loaded=sorted(fitting),
        missing=[name for name in missing if name not in new],
        unexpected=sorted(tensors.keys() - own.keys()),
        mismatched={name: shapes for name, shapes in differing.items() if name not in dropped},
        dropped=dropped,
        new=new,
        remarks=lineage.remarks,
    )
    if not report.fits:
        theirs, ours = Variant.read(tensors), Variant.read(own)
        theirs = theirs._replace(num_classes=None if dropped else theirs.num_classes, masks=bool(new) or theirs.masks)
        report.advice.extend(theirs.advise(ours))
    return report, fitting
