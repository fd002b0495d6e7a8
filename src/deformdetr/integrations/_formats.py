"""Whose names a state dict has."""

from collections.abc import Mapping

from torch import Tensor

from deformdetr.integrations import _detrex, _hugging_face, _mmdetection, _original
from deformdetr.integrations._lineage import CheckpointFormat, Lineage
from deformdetr.integrations._names import Rename, Rules


def _own(original: Lineage, mark: str, further: tuple[str, ...] = ()) -> Lineage:
    """Describe our own state dicts: the names that have a counterpart in the original, and further ones."""
    names = (*(rule.ours for rule in original.rules), *further)
    rules: Rules = tuple(Rename(name, name) for name in names)
    return Lineage(
        format="deformdetr", architecture=original.architecture, marks=(mark,), rules=rules, counts_batches=None
    )


LINEAGES = (
    _own(_original.DEFORMABLE_DETR, "neck.levels.0.conv.weight", further=("queries.class_head", "queries.box_head")),
    _own(_original.DETR, "query_position.weight"),
    _original.DEFORMABLE_DETR,
    _original.DETR,
    *_hugging_face.LINEAGES,
    _mmdetection.VERSION_3,
    _mmdetection.VERSION_2,
    _detrex.DEFORMABLE_DETR,
)


def recognise(state_dict: Mapping[str, Tensor]) -> CheckpointFormat:
    """Tell whose names a state dict has.

    Raises:
        ValueError: If it has none of the known ones; the message shows a few names.
    """
    return find_lineage(state_dict).format


def find_lineage(state_dict: Mapping[str, Tensor]) -> Lineage:
    """Find out whose names a state dict has, and of which architecture.

    Raises:
        ValueError: If it has none of the known ones; the message shows a few names.
    """
    for lineage in LINEAGES:
        if lineage.recognises(state_dict):
            return lineage
    some = ", ".join(list(state_dict)[:5]) or "none at all"
    raise ValueError(f"not a checkpoint of Deformable DETR or DETR in a known format; it has the entries {some}")


def get_lineage(format: CheckpointFormat, architecture: str) -> Lineage:  # noqa: A002 - the word for it.
    """Give the names that a format has for an architecture.

    Raises:
        ValueError: If it has none.
    """
    known = {lineage.format: lineage for lineage in LINEAGES if lineage.architecture == architecture}
    if format not in known:
        raise ValueError(f"no format {format!r} for {architecture}; there are {', '.join(known)}")
    return known[format]
