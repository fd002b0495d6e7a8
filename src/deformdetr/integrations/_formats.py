"""Whose names a state dict has."""

from collections.abc import Iterator, Mapping

from deformdetr.integrations import _detrex, _hugging_face, _mmdetection, _original, _own
from deformdetr.integrations._lineage import CheckpointFormat, Lineage

LINEAGES = (
    *_own.LINEAGES,
    *_original.LINEAGES,
    *_hugging_face.LINEAGES,
    *_mmdetection.LINEAGES,
    *_detrex.LINEAGES,
)


def find_lineages(names: Mapping[str, object]) -> list[tuple[str, Lineage]]:
    """Find out whose names a state dict has, and which prefix stands before all of them.

    A prefix is told by what follows it: where all marks of a lineage follow, it is no part of their names. The shortest
    prefix counts, for some implementations' names are others' with a prefix. Models beside each other, such as a
    student and its teacher, are found each.

    Args:
        names: The state dict.

    Returns:
        Prefixes and lineages, fewest parts first.
    """
    found: list[tuple[str, Lineage]] = []
    for prefix in sorted(dict.fromkeys(_possible_prefixes(names)), key=lambda prefix: prefix.count(".")):
        if any(prefix.startswith(shorter) for shorter, _ in found):
            continue
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        lineage = next((each for each in LINEAGES if each.recognizes(inside)), None)
        if lineage is not None:
            found.append((prefix, lineage))
    return found


def _possible_prefixes(names: Mapping[str, object]) -> Iterator[str]:
    firsts = {prefix + lineage.marks[0] for lineage in LINEAGES for prefix in lineage.prefixes()}
    endings = tuple(f".{first}" for first in firsts)
    yield ""
    for name in names:
        if name.endswith(endings):
            yield from (name.removesuffix(first) for first in firsts if name.endswith(f".{first}"))


def get_lineage(format: CheckpointFormat, architecture: str) -> Lineage:  # noqa: A002 - the word for it.
    """Return the names that a format has for an architecture.

    Raises:
        ValueError: If it has none.
    """
    known = {lineage.format: lineage for lineage in LINEAGES if lineage.architecture == architecture}
    if format not in known:
        raise ValueError(f"no format {format!r} for {architecture}; there are {', '.join(known)}")
    return known[format]
