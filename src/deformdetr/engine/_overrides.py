"""Nested mappings of settings: merging, flattening and comparing them."""

from collections.abc import Iterator, Mapping
from typing import Any


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put changes over settings, level by level; settings of another `kind` are replaced as a whole."""
    merged = dict(base)
    for name, change in changes.items():
        current = merged.get(name)
        if isinstance(current, Mapping) and isinstance(change, Mapping) and _same_kind(current, change):
            merged[name] = merge(current, change)
        else:
            merged[name] = change
    return merged


def _same_kind(current: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    return "kind" not in change or "kind" not in current or current["kind"] == change["kind"]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every leaf with its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Give both values of every leaf that differs, by dotted name; `None` stands for a missing one too."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
