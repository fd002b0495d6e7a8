"""The names of transformers' DeformableDetrForObjectDetection."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from deformdetr.integrations._names import (
    Rename,
    add_aliases,
    count_numbered,
    gather_heads,
    is_two_stage,
    refines_boxes,
    rename,
    spread_heads,
    without_aliases,
)

_RULES = (
    Rename("backbone", "model.backbone.model"),
    Rename("neck.levels.#.conv", "model.input_proj.#.0"),
    Rename("neck.levels.#.norm", "model.input_proj.#.1"),
    Rename("level_embed", "model.level_embed"),
    Rename("encoder.layers.#.self_attn", "model.encoder.layers.#.self_attn"),
    Rename("encoder.layers.#.self_attn_norm", "model.encoder.layers.#.self_attn_layer_norm"),
    Rename("encoder.layers.#.feed_forward.linear1", "model.encoder.layers.#.mlp.fc1"),
    Rename("encoder.layers.#.feed_forward.linear2", "model.encoder.layers.#.mlp.fc2"),
    Rename("encoder.layers.#.feed_forward_norm", "model.encoder.layers.#.final_layer_norm"),
    Rename("decoder.layers.#.self_attn.out_proj", "model.decoder.layers.#.self_attn.o_proj"),
    Rename("decoder.layers.#.self_attn", "model.decoder.layers.#.self_attn"),
    Rename("decoder.layers.#.self_attn_norm", "model.decoder.layers.#.self_attn_layer_norm"),
    Rename("decoder.layers.#.cross_attn", "model.decoder.layers.#.encoder_attn"),
    Rename("decoder.layers.#.cross_attn_norm", "model.decoder.layers.#.encoder_attn_layer_norm"),
    Rename("decoder.layers.#.feed_forward.linear1", "model.decoder.layers.#.mlp.fc1"),
    Rename("decoder.layers.#.feed_forward.linear2", "model.decoder.layers.#.mlp.fc2"),
    Rename("decoder.layers.#.feed_forward_norm", "model.decoder.layers.#.final_layer_norm"),
    Rename("decoder.box_heads.#", "bbox_embed.#"),
    Rename("class_heads.#", "class_embed.#"),
    Rename("queries.embedding", "model.query_position_embeddings"),
    Rename("queries.reference_points", "model.reference_points"),
    Rename("queries.memory_projection", "model.enc_output"),
    Rename("queries.memory_norm", "model.enc_output_norm"),
    Rename("queries.position_projection", "model.pos_trans"),
    Rename("queries.position_norm", "model.pos_trans_norm"),
)

_STAGES = "model.backbone.model.encoder.stages"
# transformers' own ResNet; its timm backbones have torchvision's names, which are ours.
_RESNET_RULES = (
    Rename("backbone.conv1", "model.backbone.model.embedder.embedder.convolution"),
    Rename("backbone.bn1", "model.backbone.model.embedder.embedder.normalization"),
    *(
        rule
        for stage in range(4)
        for rule in (
            Rename(f"backbone.layer{stage + 1}.#.downsample.0", f"{_STAGES}.{stage}.layers.#.shortcut.convolution"),
            Rename(f"backbone.layer{stage + 1}.#.downsample.1", f"{_STAGES}.{stage}.layers.#.shortcut.normalization"),
        )
    ),
    *(
        rule
        for stage in range(4)
        for conv in range(3)
        for rule in (
            Rename(
                f"backbone.layer{stage + 1}.#.conv{conv + 1}", f"{_STAGES}.{stage}.layers.#.layer.{conv}.convolution"
            ),
            Rename(
                f"backbone.layer{stage + 1}.#.bn{conv + 1}", f"{_STAGES}.{stage}.layers.#.layer.{conv}.normalization"
            ),
        )
    ),
)

# Version 4, in whose names version 5 still writes its files.
_NAMES_IN_FILES = (
    (r"^model\.backbone\.conv_encoder\.", "model.backbone."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"(\.layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
)
_ALIASES = "model.decoder."


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of transformers' DeformableDetrForObjectDetection.

    Understood are the names of version 5 in memory and those of version 4, which are in the files of both; and timm's
    backbones as well as transformers' own ResNet.

    Raises:
        ValueError: If it holds a head under two names with different values.
    """
    refines = any(name.startswith(f"{_ALIASES}bbox_embed.") for name in state_dict)
    state = {}
    for name, tensor in without_aliases(state_dict, _ALIASES).items():
        for pattern, current in _NAMES_IN_FILES:
            name = re.sub(pattern, current, name)
        state[name] = tensor
    for layer in range(count_numbered(state, f"{_ALIASES}layers.")):
        for kind in ("weight", "bias"):
            names = [f"{_ALIASES}layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            if all(name in state for name in names):
                state[f"{_ALIASES}layers.{layer}.self_attn.in_proj_{kind}"] = torch.cat([state.pop(n) for n in names])
    return gather_heads(rename(state, (*_RESNET_RULES, *_RULES), reverse=True), refines=refines)


def to_hugging_face(
    state_dict: Mapping[str, Tensor], *, backbone: Literal["timm_backbone", "resnet"] = "timm_backbone"
) -> dict[str, Tensor]:
    """Translate a state dict of `DeformableDETR` to transformers' names, version 5, second names of the heads included.

    Args:
        state_dict: Of a model with a ResNet.
        backbone: The `model_type` of transformers' `backbone_config`: a timm model, as in the published checkpoints, or
            its own ResNet.
    """
    rules = (*_RESNET_RULES, *_RULES) if backbone == "resnet" else _RULES
    state: dict[str, Tensor] = {}
    for name, tensor in rename(spread_heads(state_dict), rules, reverse=False).items():
        if ".self_attn.in_proj_" in name:
            stem, kind = name.split("in_proj_")
            state |= {f"{stem}{part}_proj.{kind}": share for part, share in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            state[name] = tensor
    return add_aliases(state, _ALIASES, refines=refines_boxes(state_dict), two_stage=is_two_stage(state_dict))
