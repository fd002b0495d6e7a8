"""The names of detrex's DeformableDETR, DINO and DNDeformableDETR, whose backbone is detectron2's."""

from deformdetr.integrations._checkpoints._changes import LabelRows, NoBatchCounts, SecondNames
from deformdetr.integrations._checkpoints._format import Format
from deformdetr.integrations._checkpoints._heads import HeadsPerLayer
from deformdetr.integrations._checkpoints._mmdetection import neck_rules, transformer_rules
from deformdetr.integrations._checkpoints._names import Rename, Rules, within

_NORMS = {f"bn{conv}": f"conv{conv}.norm" for conv in range(1, 4)} | {"downsample.1": "shortcut.norm"}
_CONVOLUTIONS = {f"conv{conv}": f"conv{conv}" for conv in range(1, 4)} | {"downsample.0": "shortcut"}
_RESNET = (
    # Norms first: they are submodules of the convolutions.
    Rename("backbone.bn1", "backbone.stem.conv1.norm"),
    Rename("backbone.conv1", "backbone.stem.conv1"),
    *(
        rule
        for stage in range(1, 5)
        for rule in within(f"backbone.layer{stage}.#", f"backbone.res{stage + 1}.#", _NORMS | _CONVOLUTIONS)
    ),
)

_COMMON: Rules = (
    *_RESNET,
    Rename("backbone", "backbone"),
    *neck_rules("norm"),
    *transformer_rules("transformer"),
    Rename("decoder.position.encoding", "transformer.decoder.ref_point_head"),
    Rename("decoder.box_heads.#", "bbox_embed.#"),
    Rename("class_heads.#", "class_embed.#"),
)
_REFERENCES = "transformer.decoder.ref_point_head.layers.0.weight"

DEFORMABLE_DETR = Format(
    name="detrex",
    architecture="deformable_detr",
    marks=("transformer.level_embeds",),
    rules=(*_COMMON, Rename("queries.embedding", "query_embedding")),
    changes=(NoBatchCounts(), HeadsPerLayer()),
    late_changes=(SecondNames("transformer.decoder."),),
    remarks=(
        "detrex clips references to [0.001, 0.999] before it takes their logits, this library and the original to "
        "[0.00001, 0.99999]: predictions that start from a reference outside the former differ",
    ),
)

DINO = Format(
    name="detrex",
    architecture="dino",
    marks=("transformer.level_embeds", _REFERENCES, "transformer.decoder.norm.weight"),
    rules=(
        *_COMMON,
        Rename("decoder.norm", "transformer.decoder.norm"),
        Rename("queries.content", "transformer.tgt_embed"),
        Rename("denoising.label_embedding", "label_enc"),
    ),
    changes=(NoBatchCounts(), LabelRows(spare=False), HeadsPerLayer(never_shared=True)),
    late_changes=(SecondNames("transformer.decoder.", always=("bbox_embed.", "class_embed.")),),
    needs={"queries.memory_projection.weight": "two_stage=True"},
    remarks=(
        "detrex's DINO encodes the places of pixels with temperature 10000 and offset -0.5 unless told otherwise, "
        "the original and mmdetection's with 20 and 0: SinePositionConfig has both",
    ),
)

DN_DEFORMABLE_DETR = Format(
    name="detrex",
    architecture="dn_deformable_detr",
    marks=("transformer.level_embeds", _REFERENCES, "transformer.decoder.query_scale.layers.0.weight"),
    rules=(
        *_COMMON,
        Rename("decoder.position.scale", "transformer.decoder.query_scale"),
        Rename("queries.content", "tgt_embed"),
        Rename("queries.anchors", "refpoint_embed"),
        Rename("denoising.label_embedding", "denoising_generator.label_encoder"),
    ),
    changes=(NoBatchCounts(), LabelRows(spare=True), HeadsPerLayer(never_shared=True)),
    late_changes=(SecondNames("transformer.decoder.", always=("bbox_embed.",)),),
    needs={"decoder.position.scale.layers.0.weight": "query_scale=True", "queries.anchors.weight": "two_stage=False"},
)

# Special formats first: all have the marks of the last.
FORMATS = (DINO, DN_DEFORMABLE_DETR, DEFORMABLE_DETR)
