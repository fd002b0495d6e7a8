"""Ids of images and categories, which other tools write as integers, floats or text."""

import math
from collections.abc import Iterable
from typing import Any

from deformdetr._coco_types import ImageId

_INT64 = range(-(2**63), 2**63)


def parse_id(value: Any) -> ImageId | None:
    """Return an id as an integer or as text: `7.0` is 7. Return `None` if it is neither.

    Integers beyond 64 bits, booleans, empty text and numbers with a fraction are no ids.
    """
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return value if value != "" and (isinstance(value, str) or value in _INT64) else None


def parse_integer(value: Any) -> int | None:
    """Return an integer that may be written as a float or as text, or `None`."""
    parsed = parse_id(value)
    if isinstance(parsed, str):
        parsed = _number_of(parsed)
    # `None in range(...)` would compare all of its numbers.
    return parsed if parsed is not None and parsed in _INT64 else None


def spellings(identifier: ImageId) -> tuple[ImageId, ...]:
    """Return an id as other entries may write it: 7 also as "7", and "7" also as 7."""
    other = _number_of(identifier) if isinstance(identifier, str) else str(identifier)
    return (identifier,) if other is None else (identifier, other)


def same_type(ids: Iterable[ImageId]) -> tuple[ImageId, ...]:
    """Return ids that are all integers or all text as they are, and others as text."""
    ids = tuple(ids)
    return tuple(map(str, ids)) if len(set(map(type, ids))) > 1 else ids


def _number_of(text: str) -> int | None:
    """Return the integer of which `text` is the plain decimal form. "007" is not one."""
    is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20
    return int(text) if is_number and str(int(text)) == text else None
