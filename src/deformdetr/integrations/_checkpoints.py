"""Reading checkpoints into models, with an account of what fitted."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn

from deformdetr.integrations._classes import select_classes
from deformdetr.integrations._files import CheckpointError, read_content
from deformdetr.integrations._reports import CheckpointReport
from deformdetr.integrations._structure import has_masks, shares_heads
from deformdetr.integrations._variant import Variant
from deformdetr.integrations._wrappers import find_weights

# What has a row for every class.
_OF_CLASSES = ("class_heads.", "queries.class_head.", "class_head.", "denoising.label_embedding.")
_COUNT = "num_batches_tracked"


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

    Known are the originals of Deformable DETR, DINO, DN-DETR (with deformable attention) and DETR, transformers of
    Deformable DETR and DETR, and mmdetection 2 and 3 and detrex of Deformable DETR and DINO.

    Args:
        model: A `DeformableDETR` of the checkpoint's variant, or a `DETR`. Its structure decides where a checkpoint
            does not tell whether decoder layers share their heads.
        source: A state dict, or a file that holds one, in any entries and with any prefixes of wrappers:
            `.safetensors`, or anything else in PyTorch's format, of which only tensors and plain values are unpickled.
            Of several state dicts of a model, see `CheckpointReport.place`, those come first that no entry or prefix
            calls an average (`ema`, `avg`, `swa`), then those nearest to the top, then the first.
        classes: Which classes of the checkpoint to take, by their labels there; see `select_classes`. None: all.
        drop_class_head: Whether class heads of another number of classes, and the embedding of labels that are
            denoised, are left as the model has them, to be trained.
        new_mask_head: Whether a mask head that the checkpoint lacks is left as the model has it, to be trained.
        strict: Whether anything missing, unexpected or mismatched is an error. Otherwise what fits is loaded.

    Returns:
        What was loaded and what was not; `print` it.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If the file is not a checkpoint of either model, or does not fit; nothing has been loaded then.
    """
    described = str(source) if isinstance(source, str | Path) else "the state dict"
    content = read_content(source)
    try:
        weights, left_aside = find_weights(content)
        tensors = weights.lineage.read(weights.tensors, share_heads=shares_heads(model.state_dict())).everything
        if classes is not None:
            tensors = select_classes(tensors, classes)
    except ValueError as error:
        raise CheckpointError(f"{described}: {error}") from error
    report = CheckpointReport(
        format=weights.lineage.format,
        remarks=weights.lineage.remarks,
        place=weights.place,
        left_aside=left_aside,
        **_compare(tensors, model.state_dict(), drop_class_head=drop_class_head, new_mask_head=new_mask_head),
    )
    if not report.fits:
        report.advice.extend(_advise(tensors, model.state_dict(), report))
        if strict:
            raise CheckpointError(f"{described} does not fit the model\n{report}")
    model.load_state_dict({name: tensors[name] for name in report.loaded}, strict=False)
    return report


class _Comparison(TypedDict):
    """The fields of a report that tell which entries fit."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dropped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    new: list[str]


def _compare(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, drop_class_head: bool, new_mask_head: bool
) -> _Comparison:
    differing = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    }
    dropped = {name: shapes for name, shapes in differing.items() if drop_class_head and name.startswith(_OF_CLASSES)}
    missing = _without_counts(own.keys() - tensors.keys())
    new = [name for name in missing if new_mask_head and not has_masks(tensors) and has_masks([name])]
    return {
        "loaded": sorted((tensors.keys() & own.keys()) - differing.keys()),
        "missing": [name for name in missing if name not in new],
        "unexpected": _without_counts(tensors.keys() - own.keys()),
        "mismatched": {name: shapes for name, shapes in differing.items() if name not in dropped},
        "dropped": dropped,
        "new": new,
    }


def _without_counts(names: Iterable[str]) -> list[str]:
    """Sort names, without those of counts of batches: one side may lack them, for no norm uses them."""
    return sorted(name for name in names if not name.endswith(_COUNT))


def _advise(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], report: CheckpointReport) -> list[str]:
    theirs, ours = Variant.read(tensors), Variant.read(own)
    return theirs._replace(
        num_classes=None if report.dropped else theirs.num_classes, masks=bool(report.new) or theirs.masks
    ).advise(ours)
