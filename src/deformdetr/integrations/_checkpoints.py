"""Reading checkpoints into models, with an account of what fitted."""

import argparse
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deformdetr.integrations._formats import CheckpointFormat, recognise
from deformdetr.integrations._hugging_face import from_hugging_face
from deformdetr.integrations._original import from_original
from deformdetr.integrations._variant import Variant

_CLASS_HEADS = ("class_heads.", "queries.class_head.", "class_head.")
# What PyTorch's reader raises on files that are cut short, damaged, or something else altogether.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AssertionError,
    AttributeError,
    TypeError,
    struct.error,
    # Seeking to where a file that is cut short no longer is.
    OSError,
)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the model is left as it was."""


@dataclass(frozen=True)
class CheckpointReport:
    """How a checkpoint fitted a model, in the model's own names."""

    format: CheckpointFormat
    """Whose names the checkpoint had."""
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """In the model only: left as they were."""
    unexpected: list[str] = field(default_factory=list)
    """In the checkpoint only: not used."""
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Shapes in the checkpoint and in the model, where they differ: left as they were."""
    dropped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """The same for class heads that were dropped on request."""
    advice: list[str] = field(default_factory=list)
    """How to build a model that the checkpoint fits, where its variant is another one."""

    @property
    def fits(self) -> bool:
        """Whether everything in the checkpoint and in the model found its counterpart, dropped heads aside."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.format} checkpoint: {len(self.loaded)} entries loaded"]
        for title, names in (("missing from the checkpoint", self.missing), ("unknown to the model", self.unexpected)):
            if names:
                lines += [f"{len(names)} {title}:", *_shorten([f"  {name}" for name in names])]
        for title, shapes in (("of another shape", self.mismatched), ("dropped class heads", self.dropped)):
            if shapes:
                rows = [
                    f"  {name}: {theirs} in the checkpoint, {ours} in the model"
                    for name, (theirs, ours) in shapes.items()
                ]
                lines += [f"{len(shapes)} {title}:", *_shorten(rows)]
        return "\n".join(lines + self.advice)


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    drop_class_head: bool = False,
    strict: bool = True,
) -> CheckpointReport:
    """Load a checkpoint of this library, of the original Deformable DETR or DETR, or of transformers; its names tell.

    Args:
        model: A `DeformableDETR` of the checkpoint's variant, or a `DETR`; of transformers, the former alone is known.
        source: A state dict, or a file that holds one, by itself or as its entry `model` or `state_dict`:
            `.safetensors`, or anything else in PyTorch's format, of which only tensors and plain values are unpickled.
        drop_class_head: Whether class heads of another number of classes are left as the model has them, to be trained.
        strict: Whether anything missing, unexpected or mismatched is an error. Otherwise what fits is loaded.

    Returns:
        What was loaded and what was not; `print` it.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If the file is not a checkpoint of either model, or does not fit; nothing has been loaded then.
    """
    content = _read(Path(source)) if isinstance(source, str | Path) else source
    described = str(source) if isinstance(source, str | Path) else "the state dict"
    try:
        found, tensors = _translate(_state_dict(content))
    except ValueError as error:
        raise CheckpointError(f"{described}: {error}") from error
    report, fitting = _compare(model, tensors, found, drop_class_head=drop_class_head)
    if strict and not report.fits:
        raise CheckpointError(f"{described} does not fit the model\n{report}")
    model.load_state_dict(fitting, strict=False)
    return report


def _state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors in what a file holds, without the prefixes that wrappers add to their names."""
    inner = (content.get(key) for key in ("model", "state_dict"))
    state = next((value for value in inner if isinstance(value, Mapping)), content)
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    # Of a `Detector`, which transformers' names would otherwise be taken for.
    if "model.neck.levels.0.conv.weight" in tensors:
        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    return tensors


def _translate(tensors: dict[str, Tensor]) -> tuple[CheckpointFormat, dict[str, Tensor]]:
    found = recognise(tensors)
    if found == "original":
        tensors = from_original(tensors)
    elif found == "hugging_face":
        tensors = from_hugging_face(tensors)
    # FrozenBatchNorm does not count batches, and trained BatchNorm does without the count.
    return found, {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


def _compare(
    model: nn.Module, tensors: Mapping[str, Tensor], found: CheckpointFormat, *, drop_class_head: bool
) -> tuple[CheckpointReport, dict[str, Tensor]]:
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
    differing = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    }
    dropped = {name: shapes for name, shapes in differing.items() if drop_class_head and name.startswith(_CLASS_HEADS)}
    report = CheckpointReport(
        format=found,
        loaded=sorted(fitting),
        missing=sorted(own.keys() - tensors.keys()),
        unexpected=sorted(tensors.keys() - own.keys()),
        mismatched={name: shapes for name, shapes in differing.items() if name not in dropped},
        dropped=dropped,
    )
    if not report.fits:
        theirs, ours = Variant.read(tensors), Variant.read(own)
        report.advice.extend(theirs._replace(num_classes=None if dropped else theirs.num_classes).advise(ours))
    return report, fitting


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the file in it, such as {path / 'model.safetensors'}")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        # Imported here, because only files of this format need the package.
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    with path.open("rb") as file:
        try:
            # The original keeps its command line in the file; a namespace of plain values is harmless.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items()}


def _reason(error: Exception) -> str:
    """Say in one line why PyTorch refused a file; its own message advises to run the code in it."""
    unsafe = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if unsafe:
        return (
            f"it holds a {unsafe[1]}, and only tensors and plain values are unpickled, because anything else may run "
            "code; save the state dict alone"
        )
    first = next(iter(str(error).splitlines()), "")
    return f"not a file that torch.save has written, or cut short or damaged ({type(error).__name__}: {first})"


def _shorten(rows: list[str], limit: int = 20) -> list[str]:
    return rows if len(rows) <= limit else [*rows[:limit], f"  and {len(rows) - limit} more"]
