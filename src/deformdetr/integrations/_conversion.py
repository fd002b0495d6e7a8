"""State dicts and files from one format to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from deformdetr._files import check_writable, write_tensors
from deformdetr.integrations._classes import left_out_rows, select_classes
from deformdetr.integrations._files import CheckpointError, read_content
from deformdetr.integrations._formats import get_lineage
from deformdetr.integrations._lineage import CheckpointFormat, Lineage
from deformdetr.integrations._reports import ConversionReport
from deformdetr.integrations._structure import shares_heads
from deformdetr.integrations._translation import Loss
from deformdetr.integrations._variant import Variant
from deformdetr.integrations._wrappers import Weights, find_weights

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def translate_state_dict(
    state_dict: Mapping[str, Any],
    format: CheckpointFormat,  # noqa: A002 - the word for it.
    *,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    share_heads: bool | None = None,
    allow_loss: bool = False,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Translate a state dict of any known format to another, by way of this library's names.

    Args:
        state_dict: Of a Deformable DETR or a DETR, in any entries and with any prefixes of wrappers.
        format: Whose names the result has.
        classes: Which classes to keep, by their labels in `state_dict`; see `select_classes`. None: all.
        backbone: For transformers' formats, the `model_type` of its `backbone_config`: a timm model, as in the
            published checkpoints, or its own ResNet.
        share_heads: Whether all decoder layers share one class head and one box head, where the state dict does not
            tell: its heads are equal, and neither names nor memory say whether they are one. Layers of a Deformable
            DETR share them unless they refine boxes.
        allow_loss: Whether to go on where the other format has no place for some values, or no format knows some
            entries. Values of zero are no loss, nor is what no model reads, such as rows of an embedding that no label
            has.

    Returns:
        The result, and an account of what has become of the entries.

    Raises:
        ValueError: If the state dict has none of the known formats, or the other format has no such model, or the heads
            lack a class, or something would be lost.
    """
    weights, left_aside = find_weights(state_dict)
    tensors, report, _ = _translate(
        weights, left_aside, format, classes=classes, backbone=backbone, share_heads=share_heads, allow_loss=allow_loss
    )
    return tensors, report


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    format: CheckpointFormat = "deformdetr",  # noqa: A002 - the word for it.
    *,
    overwrite: bool = False,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    allow_loss: bool = False,
) -> ConversionReport:
    """Write a model's weights, whole, or as another implementation names and stores them.

    Args:
        model: A `DeformableDETR` or a `DETR`.
        path: `.safetensors`, or for PyTorch's format `.pth`, `.pt`, `.bin` or `.ckpt`.
        format: Whose names the file has; this library's own is the model's state dict.
        overwrite: Whether an existing file is replaced.
        classes: As in `translate_state_dict`.
        backbone: As in `translate_state_dict`.
        allow_loss: As in `translate_state_dict`.

    Returns:
        What was written and what has no place there; `print` it.

    Raises:
        FileExistsError: If there is such a file already.
        ValueError: If the suffix is another one, or the format has no such model, or no place for some of its values.
        OSError: If the file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    check_writable(path, suffixes=_SUFFIXES, overwrite=overwrite)
    weights, left_aside = find_weights(model.state_dict())
    tensors, report, lineage = _translate(
        weights, left_aside, format, classes=classes, backbone=backbone, share_heads=None, allow_loss=allow_loss
    )
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
    share_heads: bool | None = None,
    allow_loss: bool = False,
) -> ConversionReport:
    """Convert a file of any known format to another; what it holds besides weights is left out.

    Args:
        source: As in `load_checkpoint`.
        target: File to write, as in `save_checkpoint`.
        format: Whose names it has.
        overwrite: Whether an existing file is replaced.
        classes: As in `translate_state_dict`.
        backbone: As in `translate_state_dict`.
        share_heads: As in `translate_state_dict`.
        allow_loss: As in `translate_state_dict`.

    Returns:
        What was converted and what has no place in the result; `print` it.

    Raises:
        FileNotFoundError: If the source does not exist.
        FileExistsError: If the target exists.
        CheckpointError: If the source cannot be read or converted, or something would be lost; nothing is written then.
        ValueError: If the target's suffix is not that of a checkpoint.
        OSError: If the target cannot be written; an older one is left as it was.
    """
    source, target = Path(source), Path(target)
    check_writable(target, suffixes=_SUFFIXES, overwrite=overwrite)
    content = read_content(source)
    try:
        weights, left_aside = find_weights(content)
        tensors, report, lineage = _translate(
            weights,
            left_aside,
            format,
            classes=classes,
            backbone=backbone,
            share_heads=share_heads,
            allow_loss=allow_loss,
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    write_tensors(tensors, target, container=lineage.container)
    return report


def _translate(
    weights: Weights,
    left_aside: list[str],
    to: CheckpointFormat,
    *,
    classes: Sequence[int] | None,
    backbone: str,
    share_heads: bool | None,
    allow_loss: bool,
) -> tuple[dict[str, Tensor], ConversionReport, Lineage]:
    source = weights.lineage
    target = get_lineage(to, source.architecture)
    if backbone == "resnet" and not target.own_resnet:
        raise ValueError(f"{to} has no ResNet of its own; backbone='resnet' is for transformers' formats")
    incoming = source.read(weights.tensors, share_heads=share_heads)
    if share_heads and not shares_heads(incoming.tensors):
        raise ValueError("share_heads=True, but decoder layers have different heads")
    model = Variant.read(incoming.tensors).describe()
    if classes is not None:
        selected = select_classes(incoming.tensors, classes)
        what = f"rows of class heads, {len(classes)} of which are kept"
        incoming.losses.append(Loss.of(what, left_out_rows(incoming.tensors, classes), "asked for"))
        incoming.tensors = selected
    outgoing = target.write(incoming.tensors, own_resnet=backbone == "resnet")
    for done in (incoming, outgoing):
        if done.unknown:
            done.losses.append(Loss.of("entries without a counterpart", done.unknown))
    report = ConversionReport(
        source=source.format,
        target=target.format,
        model=model,
        read=len(weights.tensors),
        written=len(outgoing.tensors),
        steps=incoming.steps + outgoing.steps,
        losses=incoming.losses + outgoing.losses,
        # From a format to itself, predictions do not differ.
        remarks=() if source is target else source.remarks + target.remarks,
        place=weights.place,
        left_aside=left_aside,
    )
    if report.unasked and not allow_loss:
        raise ValueError(_refuse(report))
    return outgoing.tensors, report, target


def _refuse(report: ConversionReport) -> str:
    lines = [f"{report.source} to {report.target} would lose"]
    for loss in report.unasked:
        names = ", ".join(loss.names[:8]) + ", ..." * (len(loss.names) > 8)
        lines.append(f"  {loss.what}, {len(loss.names)} entries, largest value {loss.largest:.3g}: {names}")
    return "\n".join([*lines, "allow_loss=True, or --allow_loss, goes on without them"])
