"""The model that a state dict in this library's names belongs to, and how to build it. Values tell nothing."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from deformdetr.integrations._checkpoints._names import count_numbered


class Variant(NamedTuple):
    """The config fields of a model as names and shapes tell them; None where they do not."""

    with_box_refine: bool | None
    two_stage: bool | None
    query_selection: Literal["pure", "mixed"] | None
    anchor_queries: bool | None
    query_scale: bool | None
    decoder_norm: bool | None
    share_heads: bool | None
    denoising: Literal["dn", "cdn", "no denoising"] | None
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
        """Read the fields from a state dict in this library's names."""
        deformable = "query_position.weight" not in state
        anchors, two_stage = has_anchors(state), is_two_stage(state)
        layers = count_numbered(state, "decoder.layers.")
        # A single layer has a single head in either case.
        shared = shares_heads(state) if layers > 1 else None
        logits = _size(state, "class_heads.0.weight" if deformable else "class_head.weight", 0)
        queries = "queries.content.weight" if anchors else "queries.embedding.weight"
        return cls(
            with_box_refine=None if not deformable or shared is None else anchors or not shared,
            two_stage=two_stage if deformable else None,
            query_selection=("mixed" if anchors and two_stage else "pure") if deformable else None,
            anchor_queries=anchors if deformable else None,
            query_scale="decoder.position.scale.layers.0.weight" in state if anchors else None,
            decoder_norm="decoder.norm.weight" in state if anchors else None,
            share_heads=shared if anchors else None,
            denoising=_denoising(state) if anchors else None,
            num_feature_levels=count_numbered(state, "neck.levels.") if deformable else None,
            num_encoder_layers=count_numbered(state, "encoder.layers."),
            num_decoder_layers=layers,
            num_queries=_size(state, queries if deformable else "query_position.weight", 0),
            d_model=_size(state, "level_embed" if deformable else "query_position.weight", 1),
            d_ffn=_size(state, "decoder.layers.0.feed_forward.linear1.weight", 0),
            # The last logit of DETR is "no object".
            num_classes=logits if deformable or logits is None else logits - 1,
            masks=has_masks(state),
        )

    def describe(self) -> str:
        """Describe the model in one line."""
        features = {
            "box refinement": self.with_box_refine,
            "two-stage": self.two_stage,
            "boxes as queries": self.anchor_queries,
            "query scale": self.query_scale,
            "decoder norm": self.decoder_norm,
            "shared heads": self.share_heads,
            "denoising": self.denoising in ("dn", "cdn"),
            "masks": self.masks,
        }
        parts = [part for part, present in features.items() if present]
        parts += [
            f"{value} {_NOUNS[name]}" for name, value in self._asdict().items() if name in _NOUNS and value is not None
        ]
        return f"{'DETR' if self.two_stage is None else 'Deformable DETR'}: {', '.join(parts)}"

    def advise(self, model: "Variant") -> list[str]:
        """Return a sentence for every field with which the model has to be built to take this checkpoint.

        Args:
            model: The model as it is.
        """
        advice = []
        for name, theirs in self._asdict().items():
            ours = getattr(model, name)
            # A two-stage Deformable DETR computes its queries, so that its checkpoint does not tell their number.
            if theirs is None or ours is None or theirs == ours:
                continue
            instead = ""
            if name == "num_classes":
                instead = " or load it with drop_class_head=True"
            elif name == "masks" and not theirs:
                instead = " or load it with new_mask_head=True"
            advice.append(
                f"the checkpoint {_phrase(name, theirs)}, the model {_phrase(name, ours)}: "
                f"build it with {name}={_SETTINGS.get(theirs, repr(theirs))}{instead}"
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
_PHRASES = {
    "with_box_refine": ("does not refine boxes", "refines boxes"),
    "two_stage": ("is not two-stage", "is two-stage"),
    "anchor_queries": ("has no boxes as queries", "has boxes as queries"),
    "query_scale": ("has no query scale", "has a query scale"),
    "decoder_norm": ("has no norm after its decoder", "has a norm after its decoder"),
    "share_heads": ("has separate heads for every decoder layer", "has heads that all decoder layers share"),
    "masks": ("predicts no masks", "predicts masks"),
}
_SETTINGS = {"dn": "DenoisingConfig()", "cdn": "ContrastiveDenoisingConfig()", "no denoising": "None"}


def _phrase(name: str, value: int | str) -> str:
    if name in _PHRASES:
        return _PHRASES[name][bool(value)]
    if name == "query_selection":
        return f"has {value} query selection"
    if name == "denoising":
        return f"has {str(value).removesuffix(' denoising')} denoising"
    return f"has {value} {_NOUNS[name]}"


def _denoising(state: Mapping[str, Tensor]) -> Literal["dn", "cdn", "no denoising"]:
    """Return the kind of denoising. DN-DETR's label embedding has a channel less, whose place an indicator takes."""
    channels, d_model = _size(state, "denoising.label_embedding.weight", 1), _size(state, "level_embed", 1)
    if channels is None:
        return "no denoising"
    return "cdn" if channels == d_model else "dn"


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    return state[name].shape[axis] if name in state and state[name].ndim > axis else None


def has_anchors(names: Iterable[str]) -> bool:
    """Return whether queries are anchor boxes, which the decoder encodes and refines."""
    return any(name.startswith("decoder.position.encoding.") for name in names)


def refines_boxes(state: Mapping[str, Tensor]) -> bool:
    """Return whether decoder layers refine the boxes of the layer before.

    True for a two-stage model of one layer. One layer refines nothing in either case, and other implementations give
    the encoder its own heads only with refinement.
    """
    if has_anchors(state) or "decoder.box_heads.1.layers.0.weight" in state:
        return True
    return is_two_stage(state) and count_numbered(state, "decoder.layers.") == 1


def shares_heads(names: Iterable[str]) -> bool:
    """Return whether all decoder layers share one class head and one box head."""
    return not any(name.startswith(("decoder.box_heads.1.", "class_heads.1.")) for name in names)


def is_two_stage(state: Mapping[str, Tensor]) -> bool:
    """Return whether the encoder proposes the queries."""
    return "queries.class_head.weight" in state


def has_masks(names: Iterable[str]) -> bool:
    """Return whether the model predicts masks."""
    return any(name.startswith("mask_head.") for name in names)
