"""The names of detrex's DeformableDETR, whose backbone is detectron2's."""

from deformdetr.integrations._lineage import Lineage
from deformdetr.integrations._mmdetection import transformer_rules
from deformdetr.integrations._names import Rename, within

_NORMS = {f"bn{conv}": f"conv{conv}.norm" for conv in range(1, 4)} | {"downsample.1": "shortcut.norm"}
_CONVOLUTIONS = {f"conv{conv}": f"conv{conv}" for conv in range(1, 4)} | {"downsample.0": "shortcut"}
_RESNET = (
    # Norms first: they lie in their convolutions.
    Rename("backbone.bn1", "backbone.stem.conv1.norm"),
    Rename("backbone.conv1", "backbone.stem.conv1"),
    *(
        rule
        for stage in range(1, 5)
        for rule in within(f"backbone.layer{stage}.#", f"backbone.res{stage + 1}.#", _NORMS | _CONVOLUTIONS)
    ),
)

DEFORMABLE_DETR = Lineage(
    format="detrex",
    architecture="deformable_detr",
    marks=("transformer.level_embeds",),
    rules=(
        *_RESNET,
        Rename("backbone", "backbone"),
        *(
            rule
            for extra in range(3)
            for rule in within(
                f"neck.levels.{3 + extra}", f"neck.extra_convs.{extra}", {"conv": "conv", "norm": "norm"}
            )
        ),
        *within("neck.levels.#", "neck.convs.#", {"conv": "conv", "norm": "norm"}),
        *transformer_rules("transformer"),
        Rename("decoder.box_heads.#", "bbox_embed.#"),
        Rename("class_heads.#", "class_embed.#"),
        Rename("queries.embedding", "query_embedding"),
    ),
    repeats_heads=True,
    aliases="transformer.decoder.",
    container="model",
    remarks=(
        "detrex clips references to [0.001, 0.999] before it takes their logits, this library and the original to "
        "[0.00001, 0.99999]: predictions that start from a reference outside the former differ",
    ),
)
