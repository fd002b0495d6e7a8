"""The configs of transformers' DETR and Deformable DETR, as configs of this library."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from deformdetr._coco_types import LabelMap
from deformdetr.config import DeformableDETRConfig, DETRConfig, ResNetConfig
from deformdetr.integrations._pretrained._settings import InferenceSettings

_SEGMENTATION = "DetrForSegmentation"
# Depth and kind of blocks of transformers' own ResNets.
_RESNETS = {
    ((2, 2, 2, 2), "basic"): "resnet18",
    ((3, 4, 6, 3), "basic"): "resnet34",
    ((3, 4, 6, 3), "bottleneck"): "resnet50",
    ((3, 4, 23, 3), "bottleneck"): "resnet101",
}
# Settings with one value in this library. transformers leaves out those with its own default, which is the same.
_FIXED = {"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3}


def is_from_transformers(content: Mapping[str, Any]) -> bool:
    """Return whether this is the content of a `config.json` of transformers."""
    return "model_type" in content


def read_config(content: Mapping[str, Any]) -> DeformableDETRConfig | DETRConfig:
    """Return the config of the same model. Settings of training are this library's defaults.

    Raises:
        ValueError: If this library has no such model. The message names the setting.
    """
    kind = content["model_type"]
    if kind not in ("deformable_detr", "detr"):
        raise ValueError(f"model_type is {kind!r}; of transformers' models, deformable_detr and detr can be read")
    for name, value in _FIXED.items():
        if content.get(name, value) != value:
            raise ValueError(f"{name} is {content[name]!r}; only {value!r} can be read")
    try:
        return _deformable_detr(content) if kind == "deformable_detr" else _detr(content)
    except (ValidationError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the config of transformers' {kind} cannot be read: {error}") from error


def read_settings(content: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> InferenceSettings:
    """Return names of classes and the preparation of images.

    Args:
        content: Content of `config.json`.
        preprocessor: Content of `preprocessor_config.json`, empty for transformers' defaults.

    Raises:
        ValueError: If images are prepared in another way than this library can.
    """
    labels = _id2label(content)
    settings: dict[str, Any] = {
        "label_map": LabelMap(names=tuple(labels.values()), category_ids=tuple(labels)),
        "image_mean": preprocessor.get("image_mean", InferenceSettings().image_mean),
        "image_std": preprocessor.get("image_std", InferenceSettings().image_std),
    }
    if not preprocessor.get("do_normalize", True):
        settings |= {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1
    if abs(factor * 255 - 1) > 1e-3:
        raise ValueError(f"images are scaled by {factor} instead of 1/255, which cannot be read")
    try:
        return InferenceSettings.model_validate(settings | _sizes(preprocessor))
    except ValidationError as error:
        raise ValueError(f"the config of transformers' image processor cannot be read: {error}") from error


def _deformable_detr(content: Mapping[str, Any]) -> DeformableDETRConfig:
    two_stage = content.get("two_stage", False)
    return DeformableDETRConfig(
        **_shared(content, d_ffn=1024),
        num_queries=content.get("two_stage_num_proposals" if two_stage else "num_queries", 300),
        num_feature_levels=content.get("num_feature_levels", 4),
        with_box_refine=content.get("with_box_refine", False),
        two_stage=two_stage,
        enc_n_points=content.get("encoder_n_points", 4),
        dec_n_points=content.get("decoder_n_points", 4),
    )


def _detr(content: Mapping[str, Any]) -> DETRConfig:
    return DETRConfig(
        **_shared(content, d_ffn=2048),
        num_queries=content.get("num_queries", 100),
        masks=_SEGMENTATION in (content.get("architectures") or ()),
    )


def _shared(content: Mapping[str, Any], *, d_ffn: int) -> dict[str, Any]:
    return {
        "num_classes": len(_id2label(content)),
        "d_model": content.get("d_model", 256),
        "n_heads": _same(content, "attention_heads", 8),
        "d_ffn": _same(content, "ffn_dim", d_ffn),
        "num_encoder_layers": content.get("encoder_layers", 6),
        "num_decoder_layers": content.get("decoder_layers", 6),
        "dropout": content.get("dropout", 0.1),
        "backbone": _backbone(content),
    }


def _same(content: Mapping[str, Any], name: str, default: int) -> int:
    """Return a setting that encoder and decoder share in this library."""
    encoder, decoder = (content.get(f"{part}_{name}", default) for part in ("encoder", "decoder"))
    if encoder != decoder:
        raise ValueError(f"encoder_{name} is {encoder}, but decoder_{name} is {decoder}; only equal ones can be read")
    return int(encoder)


def _backbone(content: Mapping[str, Any]) -> ResNetConfig:
    """Return the backbone, a network of timm by its name, or a ResNet of transformers in a nested config."""
    nested = content.get("backbone_config") or {}
    if nested.get("model_type") == "resnet":
        key = (tuple(nested.get("depths", (3, 4, 6, 3))), nested.get("layer_type", "bottleneck"))
        if key not in _RESNETS or nested.get("downsample_in_bottleneck", False):
            raise ValueError(f"backbone_config is a ResNet of {key[1]} blocks, {key[0]}, which cannot be read")
        return ResNetConfig.model_validate({"name": _RESNETS[key]})
    name = str(nested.get("backbone") or content.get("backbone") or "resnet50").partition(".")[0]
    if name not in _RESNETS.values():
        raise ValueError(f"the backbone is {name!r}; of transformers' models, those with a ResNet can be read")
    stride = nested.get("output_stride") or (content.get("backbone_kwargs") or {}).get("output_stride")
    return ResNetConfig.model_validate({"name": name, "dilation": bool(content.get("dilation")) or stride == 16})


def _id2label(content: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of labels. transformers leaves out its default of two labels."""
    names = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = {int(label): str(name) for label, name in names.items()}
    return dict(sorted(labels.items()))


def _sizes(preprocessor: Mapping[str, Any]) -> dict[str, int | None]:
    if not preprocessor.get("do_resize", True):
        return {"short_side": None}
    size = preprocessor.get("size", {"shortest_edge": 800, "longest_edge": 1333})
    # Files of old versions have a number.
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": preprocessor.get("max_size", 1333)}
    if "shortest_edge" not in size:
        raise ValueError(f"images are resized to {size}, which cannot be read; only shortest_edge and longest_edge can")
    return {"short_side": size["shortest_edge"], "max_size": size.get("longest_edge")}
