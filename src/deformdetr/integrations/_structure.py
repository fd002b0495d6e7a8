"""What the names of a state dict in this library's names tell about its model; values tell nothing."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from deformdetr.integrations._names import count_numbered


def has_anchors(names: Iterable[str]) -> bool:
    """Tell whether queries are boxes, which the decoder encodes and refines."""
    return any(name.startswith("decoder.position.encoding.") for name in names)


def refines_boxes(state: Mapping[str, Tensor]) -> bool:
    """Tell whether decoder layers refine the boxes of the layers before.

    A two-stage model of one layer counts too: only with refinement do other implementations give its encoder heads of
    its own, and one layer refines nothing in either case.
    """
    if has_anchors(state) or "decoder.box_heads.1.layers.0.weight" in state:
        return True
    return is_two_stage(state) and count_numbered(state, "decoder.layers.") == 1


def shares_heads(names: Iterable[str]) -> bool:
    """Tell whether all decoder layers have one class head and one box head."""
    return not any(name.startswith(("decoder.box_heads.1.", "class_heads.1.")) for name in names)


def is_two_stage(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the encoder proposes the queries."""
    return "queries.class_head.weight" in state


def has_masks(names: Iterable[str]) -> bool:
    """Tell whether a model predicts masks."""
    return any(name.startswith("mask_head.") for name in names)
