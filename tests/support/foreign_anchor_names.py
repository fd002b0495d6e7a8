"""Names and shapes of other implementations' DINO and DN-Deformable-DETR, written down as `foreign_names` does."""

from collections.abc import Callable
from itertools import pairwise

from deformdetr.config import DeformableDETRConfig
from foreign_names import (
    Shapes,
    around_detrex,
    around_mmdetection,
    attention,
    batch_norm,
    deformable_attention,
    general_transformer,
    linear,
    mmdetection_3_transformer,
    neck,
    norm,
    resnet,
)


def dino(config: DeformableDETRConfig) -> Shapes:
    """List DINO's repository; all its decoder layers name the one head they share, and the decoder names it again."""
    d, shapes = config.d_model, _original(config)
    shapes |= norm("transformer.decoder.norm", d) | {"transformer.tgt_embed.weight": (config.num_queries, d)}
    if config.two_stage:
        shapes |= linear("transformer.enc_output", d, d) | norm("transformer.enc_output_norm", d)
        shapes |= linear("transformer.enc_out_class_embed", d, config.num_classes)
        shapes |= _perceptron("transformer.enc_out_bbox_embed", d, d, d, 4)
    else:
        shapes["transformer.refpoint_embed.weight"] = (config.num_queries, 4)
    shapes |= _heads(config, config.num_decoder_layers, classes_again=True)
    return shapes | {"label_enc.weight": (config.num_classes + 1, d)}


def dn_deformable_detr(config: DeformableDETRConfig) -> Shapes:
    """List DN-DETR's repository with deformable attention; a channel of queries and labels is their indicator."""
    d, shapes = config.d_model, _original(config)
    shapes |= _perceptron("transformer.decoder.query_scale", d, d, d)
    shapes |= {"tgt_embed.weight": (config.num_queries, d - 1), "refpoint_embed.weight": (config.num_queries, 4)}
    shapes |= _heads(config, config.num_decoder_layers, classes_again=False)
    return shapes | {"label_enc.weight": (config.num_classes + 1, d - 1)}


def detrex_dino(config: DeformableDETRConfig) -> Shapes:
    """List detrex's DINO, which has heads of every layer, and the encoder's after them."""
    d, shapes = config.d_model, _detrex(config)
    shapes |= norm("transformer.decoder.norm", d) | {"transformer.tgt_embed.weight": (config.num_queries, d)}
    shapes |= linear("transformer.enc_output", d, d) | norm("transformer.enc_output_norm", d)
    shapes |= _heads(config, config.num_decoder_layers + 1, classes_again=True)
    return shapes | {"label_enc.weight": (config.num_classes, d)}


def detrex_dn_deformable_detr(config: DeformableDETRConfig) -> Shapes:
    """List detrex's DNDeformableDETR."""
    d, shapes = config.d_model, _detrex(config)
    shapes |= _perceptron("transformer.decoder.query_scale", d, d, d)
    shapes |= {"tgt_embed.weight": (config.num_queries, d - 1), "refpoint_embed.weight": (config.num_queries, 4)}
    shapes |= _heads(config, config.num_decoder_layers, classes_again=False)
    return shapes | {"denoising_generator.label_encoder.weight": (config.num_classes + 1, d - 1)}


def mmdetection_3_dino(config: DeformableDETRConfig) -> Shapes:
    """List mmdetection 3's DINO."""
    d, shapes = config.d_model, around_mmdetection(config) | mmdetection_3_transformer(config)
    shapes |= _perceptron("decoder.ref_point_head", 2 * d, d, d) | norm("decoder.norm", d)
    shapes |= linear("memory_trans_fc", d, d) | norm("memory_trans_norm", d)
    shapes["query_embedding.weight"] = (config.num_queries, d)
    return shapes | {"dn_query_generator.label_embedding.weight": (config.num_classes, d)}


def mmdetection_2_dino(config: DeformableDETRConfig) -> Shapes:
    """List mmdetection 2's DINO, whose perceptron of references is a sequence."""
    d, shapes, transformer = config.d_model, around_mmdetection(config), "bbox_head.transformer"
    shapes |= general_transformer(transformer, config)
    shapes |= linear(f"{transformer}.decoder.ref_point_head.0", 2 * d, d)
    shapes |= linear(f"{transformer}.decoder.ref_point_head.2", d, d) | norm(f"{transformer}.decoder.norm", d)
    shapes |= linear(f"{transformer}.enc_output", d, d) | norm(f"{transformer}.enc_output_norm", d)
    shapes[f"{transformer}.query_embed.weight"] = (config.num_queries, d)
    return shapes | {"bbox_head.label_embedding.weight": (config.num_classes, d)}


# Kind of model and format: the function that lists it.
FOREIGN_ANCHOR_NAMES: dict[tuple[str, str], Callable[[DeformableDETRConfig], Shapes]] = {
    ("dino", "original"): dino,
    ("dino", "detrex"): detrex_dino,
    ("dino", "mmdetection_3"): mmdetection_3_dino,
    ("dino", "mmdetection_2"): mmdetection_2_dino,
    ("dn", "original"): dn_deformable_detr,
    ("dn", "detrex"): detrex_dn_deformable_detr,
}


def first_name(name: str, kind: str, format: str, layers: int) -> str:  # noqa: A002 - the word for it.
    """Return the first of the names that an implementation has for one tensor."""
    name = name.removeprefix("transformer.decoder.") if "_embed." in name else name
    if (kind, format) == ("dino", "original"):
        for layer in range(layers):
            for head in ("class_embed", "bbox_embed"):
                name = (
                    f"{head}.0." + name.removeprefix(f"{head}.{layer}.")
                    if name.startswith(f"{head}.{layer}.")
                    else name
                )
    return name


def _original(config: DeformableDETRConfig) -> Shapes:
    """List what both repositories have in common with the original's."""
    d, shapes = config.d_model, {}
    for conv, batch, shape in resnet(config, detectron2=False):
        shapes |= {f"backbone.0.body.{conv}.weight": shape}
        shapes |= batch_norm(f"backbone.0.body.{batch}", shape[0], counts=False)
    widths = [
        shape for name, shape in neck(config, norm_name="norm", bias=False).items() if name.endswith("conv.weight")
    ]
    for level, shape in enumerate(widths):
        shapes |= {f"input_proj.{level}.0.weight": shape, f"input_proj.{level}.0.bias": (d,)}
        shapes |= norm(f"input_proj.{level}.1", d)
    shapes["transformer.level_embed"] = (config.num_feature_levels, d)
    for part, count in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        for i in range(count):
            layer = f"transformer.{part}.layers.{i}"
            shapes |= linear(f"{layer}.linear1", d, config.d_ffn) | linear(f"{layer}.linear2", config.d_ffn, d)
            shapes |= norm(f"{layer}.norm1", d) | norm(f"{layer}.norm2", d)
            if part == "encoder":
                shapes |= deformable_attention(f"{layer}.self_attn", config, config.enc_n_points)
            else:
                shapes |= deformable_attention(f"{layer}.cross_attn", config, config.dec_n_points)
                shapes |= attention(f"{layer}.self_attn", d) | norm(f"{layer}.norm3", d)
    return shapes | _perceptron("transformer.decoder.ref_point_head", 2 * d, d, d)


def _detrex(config: DeformableDETRConfig) -> Shapes:
    d = config.d_model
    return around_detrex(config) | _perceptron("transformer.decoder.ref_point_head", 2 * d, d, d)


def _heads(config: DeformableDETRConfig, count: int, *, classes_again: bool) -> Shapes:
    """List box and class heads, and those that the decoder names again."""
    d, again, shapes = config.d_model, "transformer.decoder.", {}
    for i in range(count):
        for prefix in ("", again):
            shapes |= _perceptron(f"{prefix}bbox_embed.{i}", d, d, d, 4)
        for prefix in ("", again) if classes_again else ("",):
            shapes |= linear(f"{prefix}class_embed.{i}", d, config.num_classes)
    return shapes


def _perceptron(name: str, *channels: int) -> Shapes:
    layers = pairwise(channels)
    return {
        key: shape
        for i, (given, out) in enumerate(layers)
        for key, shape in linear(f"{name}.layers.{i}", given, out).items()
    }
