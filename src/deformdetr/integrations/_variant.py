"""Which model a state dict belongs to, and how to build it."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from deformdetr.integrations._names import count_numbered
from deformdetr.integrations._steps import has_masks, is_two_stage, refines_boxes


class Variant(NamedTuple):
    """What names and shapes of a state dict tell, by the fields of the configs; None where they do not."""

    with_box_refine: bool | None
    two_stage: bool | None
    num_feature_levels: int | None
    num_encoder_layers: int
    num_decoder_layers: int
    num_queries: int | None
    d_model: int | None
    d_ffn: int | None
    num_classes: int | None
    masks: bool

    @classmethod
    def read(cls, state: Mapping[str, Tensor]) -> "Variant":
        """Read them off a state dict in our names."""
        deformable = "query_position.weight" not in state
        logits = _size(state, "class_heads.0.weight" if deformable else "class_head.weight", 0)
        return cls(
            with_box_refine=refines_boxes(state) if deformable else None,
            two_stage=is_two_stage(state) if deformable else None,
            num_feature_levels=count_numbered(state, "neck.levels.") if deformable else None,
            num_encoder_layers=count_numbered(state, "encoder.layers."),
            num_decoder_layers=count_numbered(state, "decoder.layers."),
            num_queries=_size(state, "queries.embedding.weight" if deformable else "query_position.weight", 0),
            d_model=_size(state, "level_embed" if deformable else "query_position.weight", 1),
            d_ffn=_size(state, "decoder.layers.0.feed_forward.linear1.weight", 0),
            # The last logit of DETR is no class.
            num_classes=logits if deformable or logits is None else logits - 1,
            masks=has_masks(state),
        )

    def describe(self) -> str:
        """Say in one line which model it is."""
        numbers = [
            f"{value} {_NOUNS[name]}" for name, value in self._asdict().items() if name in _NOUNS and value is not None
        ]
        parts = ["box refinement"] * bool(self.with_box_refine) + ["two-stage"] * bool(self.two_stage)
        parts += ["masks"] * self.masks + numbers
        return f"{'DETR' if self.two_stage is None else 'Deformable DETR'}: {', '.join(parts)}"

    def advise(self, model: "Variant") -> list[str]:
        """Say with which fields a model would have to be built for this checkpoint, one sentence for each.

        Args:
            model: What it was built with.
        """
        advice = []
        for name, theirs in self._asdict().items():
            ours = getattr(model, name)
            # A two-stage checkpoint does not tell the number of queries, which it computes.
            if theirs is None or ours is None or theirs == ours:
                continue
            instead = ""
            if name == "num_classes":
                instead = " or load it with drop_class_head=True"
            elif name == "masks" and not theirs:
                instead = " or load it with new_mask_head=True"
            advice.append(
                f"the checkpoint {_say(name, theirs)}, the model {_say(name, ours)}: "
                f"build it with {name}={theirs}{instead}"
            )
        return advice


_NOUNS = {
    "num_feature_levels": "feature levels",
    "num_encoder_layers": "encoder layers",
    "num_decoder_layers": "decoder layers",
    "num_queries": "queries",
    "d_model": "channels",
    "d_ffn": "channels in its feed-forward layers",
    "num_classes": "classes",
}


def _say(name: str, value: int) -> str:
    if name == "with_box_refine":
        return "refines boxes" if value else "does not refine boxes"
    if name == "two_stage":
        return "is two-stage" if value else "is not two-stage"
    if name == "masks":
        return "predicts masks" if value else "predicts no masks"
    return f"has {value} {_NOUNS[name]}"


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    return state[name].shape[axis] if name in state and state[name].ndim > axis else None
