"""The names of the original implementations of Deformable DETR and of DETR."""

from collections.abc import Mapping

from torch import Tensor

from deformdetr.integrations._names import (
    Rename,
    add_aliases,
    gather_heads,
    is_two_stage,
    refines_boxes,
    rename,
    spread_heads,
    without_aliases,
)

_RULES = (
    Rename("backbone", "backbone.0.body"),
    Rename("neck.levels.#.conv", "input_proj.#.0"),
    Rename("neck.levels.#.norm", "input_proj.#.1"),
    Rename("level_embed", "transformer.level_embed"),
    Rename("encoder.layers.#.self_attn", "transformer.encoder.layers.#.self_attn"),
    Rename("encoder.layers.#.self_attn_norm", "transformer.encoder.layers.#.norm1"),
    Rename("encoder.layers.#.feed_forward.linear1", "transformer.encoder.layers.#.linear1"),
    Rename("encoder.layers.#.feed_forward.linear2", "transformer.encoder.layers.#.linear2"),
    Rename("encoder.layers.#.feed_forward_norm", "transformer.encoder.layers.#.norm2"),
    Rename("decoder.layers.#.self_attn", "transformer.decoder.layers.#.self_attn"),
    Rename("decoder.layers.#.self_attn_norm", "transformer.decoder.layers.#.norm2"),
    Rename("decoder.layers.#.cross_attn", "transformer.decoder.layers.#.cross_attn"),
    Rename("decoder.layers.#.cross_attn_norm", "transformer.decoder.layers.#.norm1"),
    Rename("decoder.layers.#.feed_forward.linear1", "transformer.decoder.layers.#.linear1"),
    Rename("decoder.layers.#.feed_forward.linear2", "transformer.decoder.layers.#.linear2"),
    Rename("decoder.layers.#.feed_forward_norm", "transformer.decoder.layers.#.norm3"),
    Rename("decoder.box_heads.#", "bbox_embed.#"),
    Rename("class_heads.#", "class_embed.#"),
    Rename("queries.embedding", "query_embed"),
    Rename("queries.reference_points", "transformer.reference_points"),
    Rename("queries.memory_projection", "transformer.enc_output"),
    Rename("queries.memory_norm", "transformer.enc_output_norm"),
    Rename("queries.position_projection", "transformer.pos_trans"),
    Rename("queries.position_norm", "transformer.pos_trans_norm"),
)

_DETR_RULES = (
    Rename("backbone", "backbone.0.body"),
    Rename("projection", "input_proj"),
    Rename("query_position", "query_embed"),
    Rename("encoder.layers.#.self_attn", "transformer.encoder.layers.#.self_attn"),
    Rename("encoder.layers.#.self_attn_norm", "transformer.encoder.layers.#.norm1"),
    Rename("encoder.layers.#.feed_forward.linear1", "transformer.encoder.layers.#.linear1"),
    Rename("encoder.layers.#.feed_forward.linear2", "transformer.encoder.layers.#.linear2"),
    Rename("encoder.layers.#.feed_forward_norm", "transformer.encoder.layers.#.norm2"),
    Rename("decoder.layers.#.self_attn", "transformer.decoder.layers.#.self_attn"),
    Rename("decoder.layers.#.self_attn_norm", "transformer.decoder.layers.#.norm1"),
    Rename("decoder.layers.#.cross_attn", "transformer.decoder.layers.#.multihead_attn"),
    Rename("decoder.layers.#.cross_attn_norm", "transformer.decoder.layers.#.norm2"),
    Rename("decoder.layers.#.feed_forward.linear1", "transformer.decoder.layers.#.linear1"),
    Rename("decoder.layers.#.feed_forward.linear2", "transformer.decoder.layers.#.linear2"),
    Rename("decoder.layers.#.feed_forward_norm", "transformer.decoder.layers.#.norm3"),
    Rename("decoder.norm", "transformer.decoder.norm"),
    Rename("class_head", "class_embed"),
    Rename("box_head", "bbox_embed"),
)

# Of an original DETR and of ours: no Deformable DETR has it under either name.
_DETR_MARKS = ("transformer.decoder.norm.weight", "decoder.norm.weight")

_ALIASES = "transformer.decoder."


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of the original Deformable DETR or DETR; entries that these do not name stay as they are.

    Raises:
        ValueError: If it holds a head under two names with different values.
    """
    if _DETR_MARKS[0] in state_dict:
        return rename(state_dict, _DETR_RULES, reverse=True)
    # Where it refines, and only there, the original's decoder holds the box heads too.
    refines = any(name.startswith(f"{_ALIASES}bbox_embed.") for name in state_dict)
    state = rename(without_aliases(state_dict, _ALIASES), _RULES, reverse=True)
    return gather_heads(state, refines=refines)


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of `DeformableDETR` or `DETR` to the original's names, second ones of heads included."""
    if _DETR_MARKS[1] in state_dict:
        return rename(state_dict, _DETR_RULES, reverse=False)
    state = rename(spread_heads(state_dict), _RULES, reverse=False)
    return add_aliases(state, _ALIASES, refines=refines_boxes(state_dict), two_stage=is_two_stage(state_dict))
