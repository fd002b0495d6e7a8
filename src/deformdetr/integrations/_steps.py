"""What else than a name differs between implementations: how they store heads, attention and norms."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deformdetr.integrations._names import count_numbered

_HEADS = ("class_heads", "decoder.box_heads")
# The encoder's heads here, and the heads whose numbers they continue elsewhere.
_ENCODER_HEADS = {"queries.class_head": "class_heads", "queries.box_head": "decoder.box_heads"}
_COUNT = "num_batches_tracked"


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
        elif not _equal(tensor, state[top_level]):
            raise ValueError(f"{name} and {top_level} are names of one tensor, but differ")
    return kept


def gather_heads(state: Mapping[str, Tensor], *, refines: bool | None) -> dict[str, Tensor]:
    """Give the encoder's heads their place, and the decoder one of each kind, or one per layer where it refines.

    Args:
        state: In our names, but for the encoder's heads, whose number is that of the decoder layers.
        refines: Whether the decoder refines, where the checkpoint tells: heads of a model that does may be tied, or not
            yet trained. None: it does if any of its heads differ.
    """
    layers = count_numbered(state, "decoder.layers.")
    gathered = {}
    for name, tensor in state.items():
        for ours, theirs in _ENCODER_HEADS.items():
            name = re.sub(rf"^{re.escape(theirs)}\.{layers}\.", f"{ours}.", name)
        gathered[name] = tensor
    groups = [
        [f"{heads}.{layer}.{name.removeprefix(f'{heads}.0.')}" for layer in range(layers)]
        for heads in _HEADS
        for name in gathered
        if name.startswith(f"{heads}.0.")
    ]
    if refines is None:
        refines = not all(
            _equal(gathered[names[0]], gathered[name]) for names in groups for name in names if name in gathered
        )
    for heads in _HEADS:
        own = [names for names in groups if names[0].startswith(f"{heads}.")]
        present = {name for names in own for name in names[1:]} & gathered.keys()
        if refines and not present:
            gathered |= {name: gathered[names[0]] for names in own for name in names[1:]}
        elif not refines and all(_same(gathered, names) for names in own):
            gathered = {name: tensor for name, tensor in gathered.items() if name not in present}
    return gathered


def spread_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name a shared head once per layer, and the encoder's heads after the last layer's."""
    layers = count_numbered(state, "decoder.layers.")
    spread: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head = re.match(r"(class_heads|decoder\.box_heads)\.0\.(.+)", name)
        of_encoder = next((ours for ours in _ENCODER_HEADS if name.startswith(f"{ours}.")), None)
        if head and f"{head[1]}.1.{head[2]}" not in state:
            spread |= {f"{head[1]}.{layer}.{head[2]}": tensor for layer in range(layers)}
        elif of_encoder:
            spread[f"{_ENCODER_HEADS[of_encoder]}.{layers}{name.removeprefix(of_encoder)}"] = tensor
        else:
            spread[name] = tensor
    return spread


def encoder_heads_apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give what the encoder's heads differ by from the decoder's, by name, where a model has one head for both.

    Elsewhere that is so in two stages without refinement; here the encoder has its own heads in any case.
    """
    apart = {}
    if not refines_boxes(state):
        for ours, theirs in _ENCODER_HEADS.items():
            for name in state:
                shared = state.get(f"{theirs}.0{name.removeprefix(ours)}")
                if name.startswith(f"{ours}.") and shared is not None and not _equal(state[name], shared):
                    apart[name] = state[name] - shared
    return apart


def split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the projections of attention that PyTorch stacks into those of queries, keys and values."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, found, kind = name.rpartition("in_proj_")
        if found:
            split |= {f"{stem}{part}_proj.{kind}": share for part, share in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def stack_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `split_projections`; where one of the three is missing, the others stay."""
    stacked = dict(state)
    for name in state:
        match = re.fullmatch(r"(.+\.)q_proj\.(weight|bias)", name)
        names = [f"{match[1]}{part}_proj.{match[2]}" for part in "qkv"] if match else []
        if match and all(part in state for part in names):
            stacked[f"{match[1]}in_proj_{match[2]}"] = torch.cat([stacked.pop(part) for part in names])
    return stacked


def has_masks(state: Mapping[str, Tensor]) -> bool:
    """Tell from our names whether a model predicts masks."""
    return any(name.startswith("mask_head.") for name in state)


def add_detector_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Put a prefix before the names of the detector, which stands beside its mask head elsewhere."""
    beside = ("mask_head.", "bbox_attention.")
    return {name if name.startswith(beside) else prefix + name: tensor for name, tensor in state.items()}


def without_detector_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Undo `add_detector_prefix`."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def neck_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the biases of the neck's convolutions, in our names."""
    return {name: state[name] for name in state if re.fullmatch(r"neck\.levels\.\d+\.conv\.bias", name)}


def add_neck_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add biases of zero to the neck's convolutions where they have none."""
    added = {
        name.removesuffix("weight") + "bias": tensor.new_zeros(len(tensor))
        for name, tensor in state.items()
        if re.fullmatch(r"neck\.levels\.\d+\.conv\.weight", name)
    }
    return {**added, **state}


def without_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the counts of batches, which frozen batch norms lack and the others do without."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(_COUNT)}


def with_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add counts of no batches to the norms of the backbone that have none."""
    counts = {
        name.removesuffix("running_var") + _COUNT: torch.tensor(0)
        for name in state
        if name.startswith("backbone.") and name.endswith(".running_var")
    }
    return {**counts, **state}


def _same(state: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    present = [state[name] for name in names if name in state]
    return len(present) == len(names) and all(_equal(tensor, present[0]) for tensor in present)


def _equal(first: Tensor, second: Tensor) -> bool:
    """Compare values; NaN, which training may end in, equals itself."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
