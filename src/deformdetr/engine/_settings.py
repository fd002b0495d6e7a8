"""Settings as nested mappings: merging, comparing, and error messages with suggestions."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

_Models = Sequence[type[BaseModel]]


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


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Give the dotted name of every leaf, those of all kinds where there are several."""
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        if nested:
            for each in nested:
                yield from setting_names(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def suggest(name: str, known: Sequence[str]) -> str:
    """Name what an unknown setting may have meant, to be appended to a message.

    That is a setting of this name in another section, else those spelt alike, else all of the section.
    """
    section, _, leaf = name.rpartition(".")
    candidates = [each for each in dict.fromkeys(known) if each.rpartition(".")[2] == leaf]
    candidates = candidates or difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.75)
    if candidates:
        return f"; did you mean {' or '.join(candidates)}?"
    valid = list(dict.fromkeys(each[len(section) + 1 :] for each in known if each.startswith(f"{section}.")))
    return f"; {section or 'there'} has {', '.join(valid)}" if valid else ""


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Say in one line per problem which setting is wrong, and what an unknown name may have meant."""
    known = list(setting_names(model))
    lines = []
    for problem in error.errors(include_url=False):
        name = _dotted(problem["loc"], model)
        if problem["type"] == "extra_forbidden":
            lines.append(f"there is no setting {name!r}{suggest(name, known)}")
        elif problem["type"] == "missing":
            lines.append(f"the setting {name!r} is missing")
        else:
            given = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r:.60}"
            lines.append(f"{name or 'settings'}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} settings are wrong:", *lines])


def _dotted(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """Join the names on the way to a value; pydantic also puts the kind of each union's member there."""
    names: list[str] = []
    models: _Models = [model]
    for part in loc:
        of_kind = [each for each in models if part in _kinds(each)]
        if len(models) > 1 and of_kind:
            models = of_kind
            continue
        names.append(str(part))
        models = [
            nested
            for each in models
            if part in each.model_fields
            for nested in models_in(each.model_fields[str(part)].annotation)
        ]
    return ".".join(names)


def _kinds(model: type[BaseModel]) -> tuple[object, ...]:
    kind = model.model_fields.get("kind")
    return typing.get_args(kind.annotation) if kind else ()


def models_in(annotation: object) -> _Models:
    """Give the models among the members of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [each for member in typing.get_args(annotation) if not isinstance(member, str) for each in models_in(member)]
