"""Heads of decoder layers, shared or separate, which other implementations store once per layer in either case."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from deformdetr.integrations._checkpoints._names import count_numbered
from deformdetr.integrations._checkpoints._translation import Loss, Translation, are_equal
from deformdetr.integrations._checkpoints._variant import refines_boxes

_HEADS = ("class_heads", "decoder.box_heads")
# The encoder's heads here, and the decoder's heads after which other implementations number them.
_ENCODER_HEADS = {"queries.class_head": "class_heads", "queries.box_head": "decoder.box_heads"}


@dataclass(frozen=True)
class HeadsPerLayer:
    """Heads are stored once per decoder layer, even if all layers share them."""

    encoder_continues: bool = True
    """Whether the encoder's heads are numbered after those of the last layer; otherwise they have their own names."""
    never_shared: bool = False
    """Whether all its models have separate heads for every layer."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Repeat shared heads for every layer."""
        differences = encoder_head_differences(ours)
        if self.encoder_continues and differences:
            what = "difference of the encoder's heads from the decoder's, which its model has alone"
            result.losses.append(Loss.of(what, differences))
        result.apply("heads numbered by layer", self._repeat_shared)

    def read(self, result: Translation) -> None:
        """Name the heads as here, shared ones once.

        Raises:
            ValueError: If nothing tells whether the layers share their heads.
        """
        layers = count_numbered(result.tensors, "decoder.layers.")
        if self.encoder_continues:
            result.apply(
                "the encoder's heads apart from the decoder's", lambda state: _rename_encoder_heads(state, layers)
            )
        groups = [
            [f"{heads}.{layer}.{name.removeprefix(f'{heads}.0.')}" for layer in range(layers)]
            for heads in _HEADS
            for name in result.tensors
            if name.startswith(f"{heads}.0.")
        ]
        if self._are_shared(result, groups):
            copies = {name for names in groups for name in names[1:]}
            result.apply(
                "heads that all layers share kept once",
                lambda state: {name: tensor for name, tensor in state.items() if name not in copies},
            )
        elif result.share_heads is False:
            result.apply("heads stored once given to every layer", lambda state: _fill_missing(state, groups))

    def _are_shared(self, result: Translation, groups: Sequence[Sequence[str]]) -> bool:
        """Decide by different values, the caller, the format or shared memory, in this order, not by equality."""
        copies = [[result.tensors[name] for name in names if name in result.tensors] for names in groups]
        pairs = [(first, other) for first, *others in copies for other in others]
        if not pairs or any(not are_equal(first, other) for first, other in pairs):
            return False
        if result.share_heads is not None:
            return result.share_heads
        if self.never_shared:
            return False
        if all(first.is_set_to(other) for first, other in pairs):
            return True
        raise ValueError(
            "the heads of all decoder layers are equal, and nothing tells whether the layers share one head or have "
            "one each that are not trained yet: say share_heads=True or share_heads=False (--share_heads)"
        )

    def _repeat_shared(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        layers = count_numbered(state, "decoder.layers.")
        spread: dict[str, Tensor] = {}
        for name, tensor in state.items():
            head = re.match(r"(class_heads|decoder\.box_heads)\.0\.(.+)", name)
            of_encoder = next((ours for ours in _ENCODER_HEADS if name.startswith(f"{ours}.")), None)
            if head and f"{head[1]}.1.{head[2]}" not in state:
                spread |= {f"{head[1]}.{layer}.{head[2]}": tensor for layer in range(layers)}
            elif of_encoder and self.encoder_continues:
                spread[f"{_ENCODER_HEADS[of_encoder]}.{layers}{name.removeprefix(of_encoder)}"] = tensor
            else:
                spread[name] = tensor
        return spread


def encoder_head_differences(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's heads minus the decoder's, where other implementations have one head for both.

    They do in two stages without refinement; here the encoder always has its own heads.
    """
    differences = {}
    if not refines_boxes(state):
        for ours, theirs in _ENCODER_HEADS.items():
            for name in state:
                shared = state.get(f"{theirs}.0{name.removeprefix(ours)}")
                if name.startswith(f"{ours}.") and shared is not None and not are_equal(state[name], shared):
                    same_shape = state[name].shape == shared.shape
                    differences[name] = state[name].double() - shared.double() if same_shape else state[name]
    return differences


def _rename_encoder_heads(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    taken = {}
    for name, tensor in state.items():
        for ours, theirs in _ENCODER_HEADS.items():
            name = re.sub(rf"^{re.escape(theirs)}\.{layers}\.", f"{ours}.", name)
        taken[name] = tensor
    return taken


def _fill_missing(state: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Copy the first layer's heads to layers without: files may store a tensor with several names once."""
    alone = [names for names in groups if not any(name in state for name in names[1:])]
    return {**state, **{name: state[names[0]] for names in alone for name in names[1:]}}
