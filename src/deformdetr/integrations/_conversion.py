"""State dicts and files from one format to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from deformdetr._files import check_writable, write_tensors
from deformdetr.integrations._classes import left_out_rows, select_classes
from deformdetr.integrations._files import CheckpointError, read_tensors
from deformdetr.integrations._formats import find_lineage, get_lineage
from deformdetr.integrations._lineage import CheckpointFormat, Lineage, Loss, Translation
from deformdetr.integrations._reports import ConversionReport
from deformdetr.integrations._variant import Variant

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def translate_state_dict(
    state_dict: Mapping[str, Tensor],
    format: CheckpointFormat,  # noqa: A002 - the word for it.
    *,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Translate a state dict of any known format to another, by way of this library's names.

    Args:
        state_dict: Of a Deformable DETR or a DETR.
        format: Whose names the result has.
        classes: Which classes to keep, by their labels in `state_dict`; see `select_classes`. None: all.
        backbone: For transformers' formats, the `model_type` of its `backbone_config`: a timm model, as in the
            published checkpoints, or its own ResNet.

    Returns:
        The result, and an account of what has become of the entries. Entries that no format knows are left out, and
        listed in it.

    Raises:
        ValueError: If the state dict has none of the known formats, or the other format has no such model, or the heads
            lack a class.
    """
    tensors, report, _ = _translate(state_dict, format, classes, backbone)
    return tensors, report


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    format: CheckpointFormat = "deformdetr",  # noqa: A002 - the word for it.
    *,
    overwrite: bool = False,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
) -> ConversionReport:
    """Write a model's weights as another implementation names and stores them.

    Args:
        model: A `DeformableDETR` or a `DETR`.
        path: `.safetensors`, or for PyTorch's format `.pth`, `.pt`, `.bin` or `.ckpt`.
        format: Whose names the file has.
        overwrite: Whether an existing file is replaced.
        classes: As in `translate_state_dict`.
        backbone: As in `translate_state_dict`.

    Returns:
        What was written and what has no place there; `print` it.

    Raises:
        FileExistsError: If there is such a file already.
        ValueError: If the suffix is another one, or the format has no such model.
        OSError: If the file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    check_writable(path, suffixes=_SUFFIXES, overwrite=overwrite)
    tensors, report, lineage = _translate(read_tensors(model.state_dict()), format, classes, backbone)
    write_tensors(tensors, path, container=lineage.container)
    return report


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    format: CheckpointFormat,  # noqa: A002 - the word for it.
    *,
    overwrite: bool = False,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
) -> ConversionReport:
    """Convert a file of any known format to another; what it holds besides weights is left out.

    Args:
        source: As in `load_checkpoint`.
        target: File to write, as in `save_checkpoint`.
        format: Whose names it has.
        overwrite: Whether an existing file is replaced.
        classes: As in `translate_state_dict`.
        backbone: As in `translate_state_dict`.

    Returns:
        What was converted and what has no place in the result; `print` it.

    Raises:
        FileNotFoundError: If the source does not exist.
        FileExistsError: If the target exists.
        CheckpointError: If the source cannot be read or converted.
        ValueError: If the target's suffix is not that of a checkpoint.
        OSError: If the target cannot be written; an older one is left as it was.
    """
    source, target = Path(source), Path(target)
    check_writable(target, suffixes=_SUFFIXES, overwrite=overwrite)
    content = read_tensors(source)
    try:
        tensors, report, lineage = _translate(content, format, classes, backbone)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    write_tensors(tensors, target, container=lineage.container)
    return report


def _translate(
    state_dict: Mapping[str, Tensor], to: CheckpointFormat, classes: Sequence[int] | None, backbone: str
) -> tuple[dict[str, Tensor], ConversionReport, Lineage]:
    source = find_lineage(state_dict)
    target = get_lineage(to, source.architecture)
    if backbone == "resnet" and not target.own_resnet:
        raise ValueError(f"{to} has no ResNet of its own; backbone='resnet' is for transformers' formats")
    incoming = source.read(state_dict)
    _leave_out_unknown(incoming)
    model = Variant.read(incoming.tensors).describe()
    if classes is not None:
        selected = select_classes(incoming.tensors, classes)
        what = f"rows of class heads, {len(classes)} of which are kept"
        incoming.losses.append(Loss.of(what, left_out_rows(incoming.tensors, classes)))
        incoming.tensors = selected
    outgoing = target.write(incoming.tensors, own_resnet=backbone == "resnet")
    _leave_out_unknown(outgoing)
    report = ConversionReport(
        source=source.format,
        target=target.format,
        model=model,
        read=len(state_dict),
        written=len(outgoing.tensors),
        steps=incoming.steps + outgoing.steps,
        losses=incoming.losses + outgoing.losses,
        # From a format to itself, predictions do not differ.
        remarks=() if source is target else source.remarks + target.remarks,
    )
    return outgoing.tensors, report, target


def _leave_out_unknown(done: Translation) -> None:
    unknown = {name: done.tensors[name] for name in done.unknown}
    done.lose("entries without a counterpart", unknown)
