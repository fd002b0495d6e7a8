"""Rules that rename entries of state dicts."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Rename(NamedTuple):
    """The name of a module or an entry here and elsewhere; `#` matches a number, and the rest of a name is kept."""

    ours: str
    theirs: str


Rules: TypeAlias = tuple[Rename, ...]


def within(ours: str, theirs: str, names: Mapping[str, str]) -> Rules:
    """Return rules for the parts of one module.

    Args:
        ours: Name of the module here.
        theirs: Name of the module elsewhere.
        names: Names of the parts here and elsewhere.
    """
    return tuple(Rename(f"{ours}.{here}", f"{theirs}.{there}") for here, there in names.items())


_ENCODER_PARTS = ("self_attn", "self_attn_norm", "feed_forward.linear1", "feed_forward.linear2", "feed_forward_norm")
_DECODER_PARTS = ("self_attn", "self_attn_norm", "cross_attn", "cross_attn_norm", *_ENCODER_PARTS[2:])


def encoder_rules(theirs: str, parts: str) -> Rules:
    """Return rules for the layers of the encoder.

    Args:
        theirs: Name of the layers elsewhere.
        parts: Names of a layer's parts elsewhere: attention, its norm, first and second linear layer, their norm.
    """
    return within("encoder.layers.#", f"{theirs}.#", dict(zip(_ENCODER_PARTS, parts.split(), strict=True)))


def decoder_rules(theirs: str, parts: str) -> Rules:
    """Return rules for the layers of the decoder.

    Args:
        theirs: Name of the layers elsewhere.
        parts: Names of a layer's parts elsewhere: self-attention, its norm, cross-attention, its norm, first and second
            linear layer, their norm.
    """
    return within("decoder.layers.#", f"{theirs}.#", dict(zip(_DECODER_PARTS, parts.split(), strict=True)))


def rename(
    state: Mapping[str, Tensor], rules: Sequence[Rename], *, reverse: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename every entry by the first rule that matches.

    Args:
        state: State dict.
        rules: Special rules before general ones that match the same names.
        reverse: Whether to rename from theirs to ours.

    Returns:
        The renamed entries, and the names that no rule matches, which are kept.

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
    """Count the different numbers that follow a prefix."""
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
