"""Settings as nested mappings: merging, comparing, and error messages with suggestions."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from deformdetr._text import printable

_Models = Sequence[type[BaseModel]]
_MAX_LINES = 20
_LONGEST_NAME, _LONGEST_MESSAGE = 200, 600


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes applied, level by level. Settings of another `kind` are replaced as a whole."""
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
    """Yield the dotted name and the value of each leaf."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and new values of leaves that differ, by dotted name. A missing leaf counts as `None`."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting, for all kinds of nested settings.

    Examples:
        >>> from deformdetr.engine import CosineSchedule, setting_names
        >>> list(setting_names(CosineSchedule, "train.schedule."))
        ['train.schedule.kind', 'train.schedule.final_factor', 'train.schedule.epochs']
    """
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        if nested:
            for each in nested:
                yield from setting_names(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message, with suggestions for an unknown setting.

    These are settings of the same name in other sections, else those of similar spelling, else all of the section.

    Examples:
        >>> from deformdetr.engine import suggest
        >>> suggest("train.epoch", ["train.epochs", "train.lr"])
        '; did you mean train.epochs?'
    """
    section, _, leaf = name.rpartition(".")
    candidates = [each for each in dict.fromkeys(known) if each.rpartition(".")[2] == leaf]
    candidates = candidates or difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.75)
    if candidates:
        return f"; did you mean {' or '.join(candidates)}?"
    valid = list(dict.fromkeys(each[len(section) + 1 :] for each in known if each.startswith(f"{section}.")))
    return f"; {section or 'there'} has {', '.join(valid)}" if valid else ""


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Return an error message with one line per invalid setting, and suggestions for unknown names.

    Examples:
        >>> from pydantic import ValidationError
        >>> from deformdetr.engine import TrainConfig, describe
        >>> try:
        ...     TrainConfig(epoch=3)
        ... except ValidationError as error:
        ...     describe(error, TrainConfig)
        "there is no setting 'epoch'; did you mean epochs?"
    """
    known = list(setting_names(model))
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems[:_MAX_LINES]:
        name = _dotted(problem["loc"], model)
        quoted = printable(repr(name), _LONGEST_NAME)
        if problem["type"] == "extra_forbidden":
            lines.append(f"there is no setting {quoted}{suggest(quoted[1:-1], known)}")
        elif problem["type"] == "missing":
            lines.append(f"the setting {quoted} is missing")
        else:
            given = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r:.60}"
            message = printable(problem["msg"].removeprefix("Value error, "), _LONGEST_MESSAGE)
            lines.append(f"{quoted[1:-1] or 'settings'}: {message}{given}")
    if len(problems) > _MAX_LINES:
        lines.append(f"and {len(problems) - _MAX_LINES:,} more")
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(problems):,} settings are not valid:", *lines])


def _dotted(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return the dotted name of a location, without the kinds of union members that pydantic adds to it."""
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
    """Return the pydantic models in an annotation.

    Examples:
        >>> from deformdetr.engine import CosineSchedule, models_in
        >>> [model.__name__ for model in models_in(CosineSchedule | None)]
        ['CosineSchedule']
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [each for member in typing.get_args(annotation) if not isinstance(member, str) for each in models_in(member)]
