"""Converting state dicts and files from one format to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from deformdetr._files import CHECKPOINT_SUFFIXES, check_writable, write_tensors
from deformdetr.integrations._checkpoints._classes import dropped_rows, select_classes
from deformdetr.integrations._checkpoints._format import CONTAINERS, CheckpointFormat
from deformdetr.integrations._checkpoints._formats import get_format
from deformdetr.integrations._checkpoints._reports import ConversionReport
from deformdetr.integrations._checkpoints._translation import Loss, Translation
from deformdetr.integrations._checkpoints._variant import Variant, shares_heads
from deformdetr.integrations._checkpoints._weights import CheckpointError, find_weights, read_content


def translate_state_dict(
    state_dict: Mapping[str, Any],
    format: CheckpointFormat,  # noqa: A002
    *,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    share_heads: bool | None = None,
    allow_loss: bool = False,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Translate a state dict of any known format to another.

    Args:
        state_dict: State dict of a detector, below any entries and prefixes.
        format: Format of the result.
        classes: Classes to keep, by their labels in `state_dict`; see `select_classes`. None keeps all.
        backbone: For transformers' formats, the `model_type` of its `backbone_config`: timm's ResNet, as in the
            published checkpoints, or transformers' own.
        share_heads: Whether all decoder layers share one class head and one box head. Needed only if all heads are
            equal and neither names nor shared memory tell. Layers of Deformable DETR share them unless they refine
            boxes.
        allow_loss: Whether to continue if the format has no place for some values or no format knows some entries.
            Values of zero and values that no model reads are no loss.

    Returns:
        The result, and a report of the steps and losses.

    Raises:
        ValueError: If the format is not known, the other format has no such model, the heads lack a class, or values
            would be lost.

    Examples:
        >>> import torch
        >>> state, report = translate_state_dict({"transformer.level_embed": torch.zeros(4, 8)}, "hugging_face_5")
        >>> list(state), report.lossless
        (['model.level_embed'], True)
    """
    weights = find_weights(state_dict)
    source, target = weights.format, get_format(format, weights.format.architecture)
    if backbone == "resnet" and not target.own_resnet:
        raise ValueError(f"{format} has no ResNet of its own; backbone='resnet' is for transformers' formats")
    incoming = source.read(weights.tensors, share_heads=share_heads)
    if share_heads and not shares_heads(incoming.tensors):
        raise ValueError("share_heads=True, but decoder layers have different heads")
    model = Variant.read(incoming.tensors).describe()
    if classes is not None:
        selected = select_classes(incoming.tensors, classes)
        what = f"rows of class heads, {len(classes)} of which are kept"
        incoming.losses.append(Loss.of(what, dropped_rows(incoming.tensors, classes), "asked for"))
        incoming.tensors = selected
    outgoing = target.write(incoming.tensors, own_resnet=backbone == "resnet")
    report = ConversionReport(
        source=source.name,
        target=target.name,
        model=model,
        read=len(weights.tensors),
        written=len(outgoing.tensors),
        steps=incoming.steps + outgoing.steps,
        losses=[*incoming.losses, *_unknown_entries(incoming), *outgoing.losses, *_unknown_entries(outgoing)],
        # From a format to itself, predictions do not differ.
        remarks=() if source is target else source.remarks + target.remarks,
        place=weights.place,
        left_aside=weights.left_aside,
    )
    if report.unasked and not allow_loss:
        raise ValueError(_describe_losses(report))
    return outgoing.tensors, report


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    format: CheckpointFormat = "deformdetr",  # noqa: A002
    *,
    overwrite: bool = False,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    allow_loss: bool = False,
) -> ConversionReport:
    """Write a model's weights in this library's format or in another.

    Args:
        model: A `DeformableDETR` or a `DETR`.
        path: File with suffix `.safetensors`, or for PyTorch's format `.pth`, `.pt`, `.bin` or `.ckpt`.
        format: Format of the file; this library's own is the model's state dict.
        overwrite: Whether to replace an existing file.
        classes: As in `translate_state_dict`.
        backbone: As in `translate_state_dict`.
        allow_loss: As in `translate_state_dict`.

    Returns:
        A report of what was written and what was lost, to `print`.

    Raises:
        FileExistsError: If the file exists and `overwrite` is not set.
        ValueError: If the suffix is another one, the format has no such model, or values would be lost.
        OSError: If the file cannot be written; an existing file is kept then.

    Examples:
        >>> import tempfile
        >>> from deformdetr import DeformableDETRConfig
        >>> from deformdetr.config import ConvBackboneConfig
        >>> config = DeformableDETRConfig(num_classes=3, d_model=32, d_ffn=64, backbone=ConvBackboneConfig())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_checkpoint(config.build(), f"{folder}/model.pth", "detrex")
        >>> report.lossless
        True
    """
    path = Path(path)
    check_writable(path, suffixes=CHECKPOINT_SUFFIXES, overwrite=overwrite)
    tensors, report = translate_state_dict(
        model.state_dict(), format, classes=classes, backbone=backbone, allow_loss=allow_loss
    )
    write_tensors(tensors, path, container=CONTAINERS.get(format))
    return report


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    format: CheckpointFormat,  # noqa: A002
    *,
    overwrite: bool = False,
    classes: Sequence[int] | None = None,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    share_heads: bool | None = None,
    allow_loss: bool = False,
) -> ConversionReport:
    """Convert a file of any known format to another; entries other than the weights are left out.

    Args:
        source: As in `load_checkpoint`.
        target: File to write, as in `save_checkpoint`.
        format: Format of the target.
        overwrite: Whether to replace an existing file.
        classes: As in `translate_state_dict`.
        backbone: As in `translate_state_dict`.
        share_heads: As in `translate_state_dict`.
        allow_loss: As in `translate_state_dict`.

    Returns:
        A report of what was converted and what was lost, to `print`.

    Raises:
        FileNotFoundError: If the source does not exist.
        PermissionError: If it may not be downloaded without a login.
        ConnectionError: If it cannot be downloaded.
        FileExistsError: If the target exists and `overwrite` is not set.
        CheckpointError: If the source cannot be read or converted, or values would be lost; nothing is written then.
        ValueError: If the target's suffix is not that of a checkpoint.
        OSError: If the target cannot be written; an existing file is kept then.

    Examples:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": {"transformer.level_embed": torch.zeros(4, 8)}}, f"{folder}/original.pth")
        ...     report = convert_checkpoint(f"{folder}/original.pth", f"{folder}/model.safetensors", "hugging_face_4")
        >>> report.steps
        [Step(what='1 renamed', before=1, after=1), Step(what='1 renamed', before=1, after=1)]
    """
    target = Path(target)
    check_writable(target, suffixes=CHECKPOINT_SUFFIXES, overwrite=overwrite)
    content = read_content(source)
    try:
        tensors, report = translate_state_dict(
            content, format, classes=classes, backbone=backbone, share_heads=share_heads, allow_loss=allow_loss
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    write_tensors(tensors, target, container=CONTAINERS.get(format))
    return report


def _unknown_entries(result: Translation) -> list[Loss]:
    return [Loss.of("entries without a counterpart", result.unknown)] if result.unknown else []


def _describe_losses(report: ConversionReport) -> str:
    lines = [f"{report.source} to {report.target} would lose"]
    for loss in report.unasked:
        names = ", ".join(loss.names[:8]) + ", ..." * (len(loss.names) > 8)
        lines.append(f"  {loss.what}, {len(loss.names)} entries, largest value {loss.largest:.3g}: {names}")
    return "\n".join([*lines, "pass allow_loss=True (--allow_loss) to continue without them"])
