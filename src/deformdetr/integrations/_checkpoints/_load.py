"""Loading checkpoints into models."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deformdetr.integrations._checkpoints._classes import select_classes
from deformdetr.integrations._checkpoints._reports import CheckpointReport
from deformdetr.integrations._checkpoints._variant import Variant, has_masks, shares_heads
from deformdetr.integrations._checkpoints._weights import CheckpointError, Weights, find_weights, read_content

# Prefixes of entries with one row per class.
_CLASS_ROWS = ("class_heads.", "queries.class_head.", "class_head.", "denoising.label_embedding.")
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
    """Load a checkpoint of this library or of another implementation; its format is recognized.

    Known implementations are the original repositories (Deformable DETR, DINO, DN-DETR with deformable attention,
    DETR), transformers (Deformable DETR, DETR), mmdetection 2 and 3 (Deformable DETR, DINO) and detrex (Deformable
    DETR, DINO, DN-DETR).

    Args:
        model: A `DeformableDETR` of the checkpoint's variant, or a `DETR`, or one that is compiled, wrapped for several
            devices or averaged. If a checkpoint does not tell whether decoder layers share their heads, the model does.
        source: A state dict, or a file that holds one below any entries and prefixes, given as a path, a URL or a name
            on the Hugging Face Hub; see `locate_checkpoint`. The file is `.safetensors`, or with any other suffix in
            PyTorch's format, of which only tensors and plain values are unpickled. Of several state dicts,
            weights are preferred to averages (`ema`, `avg`, `swa`), then those nearest to the top, then the first.
            `CheckpointReport.place` tells which was taken.
        classes: Classes of the checkpoint to take, by their labels there; see `select_classes`. None takes all.
        drop_class_head: Whether the model keeps its class heads, and label embedding for denoising, if the checkpoint
            has another number of classes.
        new_mask_head: Whether the model keeps its mask head if the checkpoint has none.
        strict: Whether missing, unexpected or mismatched entries are an error. Otherwise matching entries are loaded.

    Returns:
        A report of what was loaded, to `print`.

    Raises:
        FileNotFoundError: If the file does not exist.
        PermissionError: If it may not be downloaded without a login.
        ConnectionError: If it cannot be downloaded.
        CheckpointError: If the file is not a checkpoint of a known model, or does not fit; nothing has been loaded
            then.

    Examples:
        >>> from deformdetr import DeformableDETRConfig
        >>> from deformdetr.config import ConvBackboneConfig
        >>> config = DeformableDETRConfig(num_classes=3, d_model=32, d_ffn=64, backbone=ConvBackboneConfig())
        >>> report = load_checkpoint(config.build(), {"model": config.build().state_dict()})
        >>> report.format, report.fits, report.place
        ('deformdetr', True, 'entry model')
    """
    described = str(source) if isinstance(source, str | Path) else "the state dict"
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values() if isinstance(tensor, Tensor)):
        raise CheckpointError("the model cannot take a checkpoint: it has no memory, being on the device meta")
    try:
        own = find_weights(state).tensors
    except ValueError:
        # A model of others, which may have some of these layers.
        own = state
    else:
        taken = set(map(id, own.values()))
        own = own | {name: each for name, each in state.items() if id(each) not in taken and name != "n_averaged"}
    content = read_content(source)
    try:
        weights = find_weights(content)
        tensors = weights.format.read(weights.tensors, share_heads=shares_heads(own)).everything
        if classes is not None:
            tensors = select_classes(tensors, classes)
    except ValueError as error:
        raise CheckpointError(f"{described}: {error}") from error
    report = _compare(weights, tensors, own, drop_class_head=drop_class_head, new_mask_head=new_mask_head)
    if not report.fits:
        theirs, ours = Variant.read(tensors), Variant.read(own)
        # What is dropped or new needs no advice.
        num_classes = None if report.dropped else theirs.num_classes
        advised = theirs._replace(num_classes=num_classes, masks=bool(report.new) or theirs.masks)
        report.advice.extend(advised.advise(ours))
        if strict:
            raise CheckpointError(f"{described} does not fit the model\n{report}")
    names = {id(tensor): name for name, tensor in state.items()}
    model.load_state_dict({names[id(own[name])]: tensors[name] for name in report.loaded}, strict=False)
    return report


def _compare(
    weights: Weights,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    drop_class_head: bool,
    new_mask_head: bool,
) -> CheckpointReport:
    """Report which translated entries match those of the model, `own`."""
    differing = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    }
    dropped = {name: shapes for name, shapes in differing.items() if drop_class_head and name.startswith(_CLASS_ROWS)}
    missing = _without_counts(own.keys() - tensors.keys())
    new = [name for name in missing if new_mask_head and not has_masks(tensors) and has_masks([name])]
    return CheckpointReport(
        format=weights.format.name,
        loaded=sorted((tensors.keys() & own.keys()) - differing.keys()),
        missing=[name for name in missing if name not in new],
        unexpected=_without_counts(tensors.keys() - own.keys()),
        mismatched={name: shapes for name, shapes in differing.items() if name not in dropped},
        dropped=dropped,
        new=new,
        remarks=weights.format.remarks,
        place=weights.place,
        left_aside=weights.left_aside,
    )


def _without_counts(names: Iterable[str]) -> list[str]:
    """Sort names, without counts of batches, which norms do not use and either side may lack."""
    return sorted(name for name in names if not name.endswith(_COUNT))
