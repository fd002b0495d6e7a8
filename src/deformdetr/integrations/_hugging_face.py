"""The names of transformers' DeformableDetrForObjectDetection, DetrForObjectDetection and DetrForSegmentation."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from deformdetr.integrations._changes import DetectorPrefix, NoBatchCounts, SecondNames, SplitProjections
from deformdetr.integrations._heads import HeadsPerLayer
from deformdetr.integrations._lineage import Lineage
from deformdetr.integrations._names import Rename, Rules, within
from deformdetr.integrations._original import MASK_HEAD
from deformdetr.integrations._own import architecture_of

_ENCODER = within(
    "encoder.layers.#",
    "model.encoder.layers.#",
    {
        "self_attn.out_proj": "self_attn.o_proj",
        "self_attn": "self_attn",
        "self_attn_norm": "self_attn_layer_norm",
        "feed_forward.linear1": "mlp.fc1",
        "feed_forward.linear2": "mlp.fc2",
        "feed_forward_norm": "final_layer_norm",
    },
)
_DECODER = within(
    "decoder.layers.#",
    "model.decoder.layers.#",
    {
        "self_attn.out_proj": "self_attn.o_proj",
        "self_attn": "self_attn",
        "self_attn_norm": "self_attn_layer_norm",
        "cross_attn.out_proj": "encoder_attn.o_proj",
        "cross_attn": "encoder_attn",
        "cross_attn_norm": "encoder_attn_layer_norm",
        "feed_forward.linear1": "mlp.fc1",
        "feed_forward.linear2": "mlp.fc2",
        "feed_forward_norm": "final_layer_norm",
    },
)

_DEFORMABLE_DETR = (
    Rename("backbone", "model.backbone.model"),
    Rename("neck.levels.#.conv", "model.input_proj.#.0"),
    Rename("neck.levels.#.norm", "model.input_proj.#.1"),
    Rename("level_embed", "model.level_embed"),
    *_ENCODER,
    *_DECODER,
    Rename("decoder.box_heads.#", "bbox_embed.#"),
    Rename("class_heads.#", "class_embed.#"),
    *within(
        "queries",
        "model",
        {
            "embedding": "query_position_embeddings",
            "reference_points": "reference_points",
            "memory_projection": "enc_output",
            "memory_norm": "enc_output_norm",
            "position_projection": "pos_trans",
            "position_norm": "pos_trans_norm",
        },
    ),
)

# The names of version 4 are the original's.
_MASK_HEAD = (
    *within("mask_head.attention_maps", "bbox_attention", {"query_proj": "q_proj", "key_proj": "k_proj"}),
    *(
        rule
        for index, theirs in enumerate(("conv1", "conv2", *(f"fpn_stages.{stage}.refine" for stage in range(3))))
        for rule in within(
            "mask_head.convolutions", f"mask_head.{theirs}", {f"convs.{index}": "conv", f"norms.{index}": "norm"}
        )
    ),
    *(Rename(f"mask_head.laterals.{stage}", f"mask_head.fpn_stages.{stage}.fpn_adapter") for stage in range(3)),
    Rename("mask_head.convolutions.out", "mask_head.output_conv"),
)

_DETR = (
    Rename("backbone", "model.backbone.model"),
    Rename("projection", "model.input_projection"),
    Rename("query_position", "model.query_position_embeddings"),
    *_ENCODER,
    *_DECODER,
    Rename("decoder.norm", "model.decoder.layernorm"),
    Rename("class_head", "class_labels_classifier"),
    Rename("box_head", "bbox_predictor"),
)

_RESNET = (
    Rename("backbone.conv1", "model.backbone.model.embedder.embedder.convolution"),
    Rename("backbone.bn1", "model.backbone.model.embedder.embedder.normalization"),
    *(
        rule
        for stage in range(4)
        for rule in within(
            f"backbone.layer{stage + 1}.#",
            f"model.backbone.model.encoder.stages.{stage}.layers.#",
            {
                "downsample.0": "shortcut.convolution",
                "downsample.1": "shortcut.normalization",
                **{f"conv{conv + 1}": f"layer.{conv}.convolution" for conv in range(3)},
                **{f"bn{conv + 1}": f"layer.{conv}.normalization" for conv in range(3)},
            },
        )
    ),
)


def _of_version_4(rules: Rules) -> Rules:
    """Give the names of version 4, in which version 5 still writes its files."""
    older = {"model.backbone.model": "model.backbone.conv_encoder.model", ".o_proj": ".out_proj", ".mlp.fc": ".fc"}

    def name(theirs: str) -> str:
        for new, old in older.items():
            theirs = theirs.replace(new, old)
        return theirs

    return tuple(Rename(rule.ours, name(rule.theirs)) for rule in rules)


def _deformable_detr(version: Literal[4, 5]) -> Lineage:
    older, older_resnet = _of_version_4(_DEFORMABLE_DETR), _of_version_4(_RESNET)
    newest = version == 5
    return Lineage(
        format="hugging_face_5" if newest else "hugging_face_4",
        architecture="deformable_detr",
        marks=("model.level_embed", f"model.decoder.layers.0.{'mlp.' if newest else ''}fc1.weight"),
        rules=_DEFORMABLE_DETR if newest else older,
        # The other version's names are understood too, mixed in.
        synonyms=(*older_resnet, *older) if newest else (*_RESNET, *_DEFORMABLE_DETR),
        own_resnet=_RESNET if newest else older_resnet,
        changes=(NoBatchCounts(), HeadsPerLayer()),
        late_changes=(SplitProjections(), SecondNames("model.decoder.")),
    )


def _detr(version: Literal[4, 5]) -> Lineage:
    newer, older, older_resnet = (*_DETR, *_MASK_HEAD), (*_of_version_4(_DETR), *MASK_HEAD), _of_version_4(_RESNET)
    newest = version == 5
    return Lineage(
        format="hugging_face_5" if newest else "hugging_face_4",
        architecture="detr",
        marks=("class_labels_classifier.weight", f"model.decoder.layers.0.{'mlp.' if newest else ''}fc1.weight"),
        rules=newer if newest else older,
        synonyms=(*older_resnet, *older) if newest else (*_RESNET, *newer),
        own_resnet=_RESNET if newest else older_resnet,
        changes=(NoBatchCounts(),),
        late_changes=(SplitProjections(),),
        masks=DetectorPrefix("detr."),
    )


LINEAGES = (_deformable_detr(5), _detr(5), _deformable_detr(4), _detr(4))


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of transformers' models: Deformable DETR, and DETR with masks or without.

    Understood are the names of version 5 in memory and those of version 4, which are in the files of both; and timm's
    backbones as well as transformers' own ResNet.

    Raises:
        ValueError: If it holds a head under two names with different values.
    """
    is_detr = any(_find("detr", version).recognizes(state_dict) for version in (4, 5))
    return _find("detr" if is_detr else "deformable_detr", 5).read(state_dict).everything


def to_hugging_face(
    state_dict: Mapping[str, Tensor],
    *,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    version: Literal[4, 5] = 5,
) -> dict[str, Tensor]:
    """Translate a state dict of `DeformableDETR` or `DETR` to transformers' names, second names of the heads included.

    Args:
        state_dict: Of a model with a ResNet.
        backbone: The `model_type` of transformers' `backbone_config`: a timm model, as in the published checkpoints, or
            its own ResNet.
        version: Whose names in memory; files have those of version 4 in either version.

    Raises:
        ValueError: If transformers has no such model.
    """
    architecture = architecture_of(state_dict)
    return _find(architecture, version).write(state_dict, own_resnet=backbone == "resnet").everything


def _find(architecture: str, version: int) -> Lineage:
    wanted = (architecture, f"hugging_face_{version}")
    found = next((each for each in LINEAGES if (each.architecture, each.format) == wanted), None)
    if found is None:
        raise ValueError(f"transformers has no model like {architecture}")
    return found
