"""Heads that decoder layers share or have one each, and that others store once per layer in either case."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from deformdetr.integrations._names import count_numbered
from deformdetr.integrations._structure import refines_boxes
from deformdetr.integrations._translation import Loss, Translation
from deformdetr.integrations._values import are_equal

_HEADS = ("class_heads", "decoder.box_heads")
# The encoder's heads here, and the heads whose numbers they continue elsewhere.
_ENCODER_HEADS = {"queries.class_head": "class_heads", "queries.box_head": "decoder.box_heads"}


@dataclass(frozen=True)
class HeadsPerLayer:
    """A head is stored once per decoder layer, also where all layers share it."""

    encoder_continues: bool = True
    """Whether the encoder's heads are stored after those of the last layer; otherwise they have names of their own."""
    never_shared: bool = False
    """Whether its models always have a head for every layer."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Repeat a shared head."""
        apart = encoder_heads_apart(ours)
        if self.encoder_continues and apart:
            what = "difference of the encoder's heads from the decoder's, which its model has alone"
            done.losses.append(Loss.of(what, apart))
        done.apply("heads numbered by layer", self._spread)

    def read(self, done: Translation) -> None:
        """Put the heads in their places, a shared one once.

        Raises:
            ValueError: If nothing tells whether the layers share their heads.
        """
        layers = count_numbered(done.tensors, "decoder.layers.")
        if self.encoder_continues:
            done.apply("the encoder's heads apart from the decoder's", lambda state: _take_encoder_heads(state, layers))
        groups = [
            [f"{heads}.{layer}.{name.removeprefix(f'{heads}.0.')}" for layer in range(layers)]
            for heads in _HEADS
            for name in done.tensors
            if name.startswith(f"{heads}.0.")
        ]
        if self._are_shared(done, groups):
            copies = {name for names in groups for name in names[1:]}
            done.apply(
                "heads that all layers share kept once",
                lambda state: {name: tensor for name, tensor in state.items() if name not in copies},
            )
        elif done.share_heads is False:
            done.apply("heads stored once given to every layer", lambda state: _repeat(state, groups))

    def _are_shared(self, done: Translation, groups: Sequence[Sequence[str]]) -> bool:
        """Decide by what was told, or else by what cannot be otherwise: equal values do not tell."""
        copies = [[done.tensors[name] for name in names if name in done.tensors] for names in groups]
        pairs = [(first, other) for first, *others in copies for other in others]
        if not pairs or any(not are_equal(first, other) for first, other in pairs):
            return False
        if done.share_heads is not None:
            return done.share_heads
        if self.never_shared:
            return False
        if all(first.is_set_to(other) for first, other in pairs):
            return True
        raise ValueError(
            "the heads of all decoder layers are equal, and nothing tells whether the layers share one head or have "
            "one each that are not trained yet: say share_heads=True or share_heads=False (--share_heads)"
        )

    def _spread(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def encoder_heads_apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the encoder's heads differ by from the decoder's, by name, where a model has one head for both.

    Elsewhere that is so in two stages without refinement; here the encoder has its own heads in any case.
    """
    apart = {}
    if not refines_boxes(state):
        for ours, theirs in _ENCODER_HEADS.items():
            for name in state:
                shared = state.get(f"{theirs}.0{name.removeprefix(ours)}")
                if name.startswith(f"{ours}.") and shared is not None and not are_equal(state[name], shared):
                    same_shape = state[name].shape == shared.shape
                    apart[name] = state[name].double() - shared.double() if same_shape else state[name]
    return apart


def _take_encoder_heads(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    taken = {}
    for name, tensor in state.items():
        for ours, theirs in _ENCODER_HEADS.items():
            name = re.sub(rf"^{re.escape(theirs)}\.{layers}\.", f"{ours}.", name)
        taken[name] = tensor
    return taken


def _repeat(state: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Give layers without a head the first one's: files may hold a tensor of several names once."""
    alone = [names for names in groups if not any(name in state for name in names[1:])]
    return {**state, **{name: state[names[0]] for names in alone for name in names[1:]}}
