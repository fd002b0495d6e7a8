"""Renaming the entries of state dicts, and the heads that a model may share between layers."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rename(NamedTuple):
    """One name here and elsewhere; `#` stands for a layer's number, and whatever follows is kept."""

    ours: str
    theirs: str

    def apply(self, name: str, *, reverse: bool) -> str | None:
        """Translate a name that starts as this rule says, or give None; `reverse` is from theirs to ours."""
        source, target = (self.theirs, self.ours) if reverse else (self.ours, self.theirs)
        match = re.match(re.escape(source).replace(r"\#", r"(\d+)") + r"(?=\.|$)", name)
        if match is None:
            return None
        for number in match.groups():
            target = target.replace("#", number, 1)
        return target + name[match.end() :]


def rename(state: Mapping[str, Tensor], rules: Sequence[Rename], *, reverse: bool) -> dict[str, Tensor]:
    """Translate every name by the first rule that applies; others are kept."""

    def translate(name: str) -> str:
        return next((new for rule in rules if (new := rule.apply(name, reverse=reverse)) is not None), name)

    return {translate(name): tensor for name, tensor in state.items()}


def refines_boxes(state: Mapping[str, Tensor]) -> bool:
    """Tell from our names whether every decoder layer has its own heads."""
    return "decoder.box_heads.1.layers.0.weight" in state


def is_two_stage(state: Mapping[str, Tensor]) -> bool:
    """Tell from our names whether the encoder proposes the queries."""
    return "queries.class_head.weight" in state


def add_aliases(state: Mapping[str, Tensor], prefix: str, *, refines: bool, two_stage: bool) -> dict[str, Tensor]:
    """Name heads a second time: elsewhere decoders hold the box heads to refine, and the class heads to propose."""
    aliased = tuple(name for name, used in (("bbox_embed.", refines), ("class_embed.", two_stage)) if used)
    return {**state, **{prefix + name: state[name] for name in state if name.startswith(aliased)}}


def without_aliases(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Drop the second names under which a decoder holds the model's heads.

    Raises:
        ValueError: If the two names have different values.
    """
    kept = {}
    for name, tensor in state.items():
        top_level = name.removeprefix(prefix)
        if top_level == name or not top_level.startswith(("bbox_embed.", "class_embed.")):
            kept[name] = tensor
        elif top_level not in state:
            kept[top_level] = tensor
        elif not torch.equal(tensor, state[top_level]):
            raise ValueError(f"{name} and {top_level} are names of one tensor, but differ")
    return kept


def gather_heads(state: Mapping[str, Tensor], *, refines: bool) -> dict[str, Tensor]:
    """Give the encoder's heads their place, and the decoder one of each kind, or one per layer where it refines.

    Equal heads alone do not tell which: those of a model that refines may be tied, or not yet trained.
    """
    layers = count_numbered(state, "decoder.layers.")
    gathered = {}
    for name, tensor in state.items():
        name = re.sub(rf"^class_heads\.{layers}\.", "queries.class_head.", name)
        name = re.sub(rf"^decoder\.box_heads\.{layers}\.", "queries.box_head.", name)
        gathered[name] = tensor
    for heads in ("class_heads", "decoder.box_heads"):
        tails = [name.removeprefix(f"{heads}.0.") for name in gathered if name.startswith(f"{heads}.0.")]
        groups = [[f"{heads}.{layer}.{tail}" for layer in range(layers)] for tail in tails]
        present = {name for names in groups for name in names[1:]} & gathered.keys()
        if refines and not present:
            gathered |= {name: gathered[names[0]] for names in groups for name in names[1:]}
        elif not refines and all(_same(gathered, names) for names in groups):
            gathered = {name: tensor for name, tensor in gathered.items() if name not in present}
    return gathered


def spread_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name a shared head once per layer, and the encoder's heads after the last layer's."""
    layers = count_numbered(state, "decoder.layers.")
    spread: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head = re.match(r"(class_heads|decoder\.box_heads)\.0\.(.+)", name)
        if head and f"{head[1]}.1.{head[2]}" not in state:
            spread |= {f"{head[1]}.{layer}.{head[2]}": tensor for layer in range(layers)}
        elif name.startswith("queries.class_head."):
            spread[f"class_heads.{layers}.{name.removeprefix('queries.class_head.')}"] = tensor
        elif name.startswith("queries.box_head."):
            spread[f"decoder.box_heads.{layers}.{name.removeprefix('queries.box_head.')}"] = tensor
        else:
            spread[name] = tensor
    return spread


def count_numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbers that follow a prefix."""
    return len({match[1] for name in state if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def _same(state: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    present = [state[name] for name in names if name in state]
    return len(present) == len(names) and all(torch.equal(tensor, present[0]) for tensor in present)
