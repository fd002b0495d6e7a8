"""The names of transformers' DeformableDetrForObjectDetection, DetrForObjectDetection and DetrForSegmentation."""

from typing import Literal

from deformdetr.integrations._checkpoints._changes import DetectorPrefix, NoBatchCounts, SecondNames, SplitProjections
from deformdetr.integrations._checkpoints._format import Format
from deformdetr.integrations._checkpoints._heads import HeadsPerLayer
from deformdetr.integrations._checkpoints._names import Rename, Rules, decoder_rules, encoder_rules, within
from deformdetr.integrations._checkpoints._original import MASK_HEAD

_LAYERS = (
    Rename("encoder.layers.#.self_attn.out_proj", "model.encoder.layers.#.self_attn.o_proj"),
    Rename("decoder.layers.#.self_attn.out_proj", "model.decoder.layers.#.self_attn.o_proj"),
    Rename("decoder.layers.#.cross_attn.out_proj", "model.decoder.layers.#.encoder_attn.o_proj"),
    *encoder_rules("model.encoder.layers", "self_attn self_attn_layer_norm mlp.fc1 mlp.fc2 final_layer_norm"),
    *decoder_rules(
        "model.decoder.layers",
        "self_attn self_attn_layer_norm encoder_attn encoder_attn_layer_norm mlp.fc1 mlp.fc2 final_layer_norm",
    ),
)

_DEFORMABLE_DETR = (
    Rename("backbone", "model.backbone.model"),
    Rename("neck.levels.#.conv", "model.input_proj.#.0"),
    Rename("neck.levels.#.norm", "model.input_proj.#.1"),
    Rename("level_embed", "model.level_embed"),
    *_LAYERS,
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
    *_LAYERS,
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
    """Return the names of version 4, which files of version 5 still have."""
    older = {"model.backbone.model": "model.backbone.conv_encoder.model", ".o_proj": ".out_proj", ".mlp.fc": ".fc"}

    def name(theirs: str) -> str:
        for new, old in older.items():
            theirs = theirs.replace(new, old)
        return theirs

    return tuple(Rename(rule.ours, name(rule.theirs)) for rule in rules)


def _deformable_detr(version: Literal[4, 5]) -> Format:
    older, older_resnet = _of_version_4(_DEFORMABLE_DETR), _of_version_4(_RESNET)
    newest = version == 5
    return Format(
        name="hugging_face_5" if newest else "hugging_face_4",
        architecture="deformable_detr",
        marks=("model.level_embed", f"model.decoder.layers.0.{'mlp.' if newest else ''}fc1.weight"),
        rules=_DEFORMABLE_DETR if newest else older,
        # Names of both versions may be mixed.
        synonyms=(*older_resnet, *older) if newest else (*_RESNET, *_DEFORMABLE_DETR),
        own_resnet=_RESNET if newest else older_resnet,
        changes=(NoBatchCounts(), HeadsPerLayer()),
        late_changes=(SplitProjections(), SecondNames("model.decoder.")),
    )


def _detr(version: Literal[4, 5]) -> Format:
    newer, older, older_resnet = (*_DETR, *_MASK_HEAD), (*_of_version_4(_DETR), *MASK_HEAD), _of_version_4(_RESNET)
    newest = version == 5
    return Format(
        name="hugging_face_5" if newest else "hugging_face_4",
        architecture="detr",
        marks=("class_labels_classifier.weight", f"model.decoder.layers.0.{'mlp.' if newest else ''}fc1.weight"),
        rules=newer if newest else older,
        synonyms=(*older_resnet, *older) if newest else (*_RESNET, *newer),
        own_resnet=_RESNET if newest else older_resnet,
        changes=(NoBatchCounts(),),
        late_changes=(SplitProjections(),),
        masks=DetectorPrefix("detr."),
    )


FORMATS = (_deformable_detr(5), _detr(5), _deformable_detr(4), _detr(4))
