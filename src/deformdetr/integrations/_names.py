"""Names in state dicts, and rules that translate them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Rename(NamedTuple):
    """One name here and elsewhere; `#` stands for a layer's number, and whatever follows is kept."""

    ours: str
    theirs: str


Rules: TypeAlias = tuple[Rename, ...]


def within(ours: str, theirs: str, names: Mapping[str, str]) -> Rules:
    """Give the rules for the parts of one module.

    Args:
        ours: The module's name here.
        theirs: Its name elsewhere.
        names: The parts' names here and elsewhere.
    """
    return tuple(Rename(f"{ours}.{here}", f"{theirs}.{there}") for here, there in names.items())


def rename(
    state: Mapping[str, Tensor], rules: Sequence[Rename], *, reverse: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate every name by the first rule that applies.

    Args:
        state: State dict.
        rules: Where several apply, the more special one must come first.
        reverse: From theirs to ours.

    Returns:
        The renamed entries, and the names that no rule knows, which are kept.

    Raises:
        ValueError: If two entries get the same name.
    """
    compiled = [_compile(rule, reverse=reverse) for rule in rules]
    renamed, unknown = {}, []
    for name, tensor in state.items():
        new = next((new for pattern, target in compiled if (new := _apply(name, pattern, target)) is not None), None)
        if new is None:
            unknown.append(name)
            new = name
        if new in renamed:
            raise ValueError(f"{name} and another entry are both names of {new}")
        renamed[new] = tensor
    return renamed, unknown


def count_numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbers that follow a prefix."""
    return len({match[1] for name in state if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def _compile(rule: Rename, *, reverse: bool) -> tuple[re.Pattern[str], str]:
    source, target = (rule.theirs, rule.ours) if reverse else (rule.ours, rule.theirs)
    return re.compile(re.escape(source).replace(r"\#", r"(\d+)") + r"(?=\.|$)"), target


def _apply(name: str, pattern: re.Pattern[str], target: str) -> str | None:
    match = pattern.match(name)
    if match is None:
        return None
    for number in match.groups():
        target = target.replace("#", number, 1)
    return target + name[match.end() :]
