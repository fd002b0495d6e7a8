"""Names and shapes of other implementations' state dicts, written down from their sources as functions of a config.

They share nothing with the code that converts: there names are translated, here they are built module by module.
"""

from collections.abc import Callable, Iterator

from deformdetr.config import DeformableDETRConfig, ResNetConfig

Shapes = dict[str, tuple[int, ...]]


def mmdetection_3(config: DeformableDETRConfig) -> Shapes:
    """List mmdetection 3's DeformableDETR; convolutions of its neck have no biases, its norms count batches."""
    d = config.d_model
    shapes = around_mmdetection(config) | mmdetection_3_transformer(config)
    if config.two_stage:
        shapes |= linear("memory_trans_fc", d, d) | norm("memory_trans_norm", d)
        shapes |= linear("pos_trans_fc", 2 * d, 2 * d) | norm("pos_trans_norm", 2 * d)
    else:
        shapes |= {"query_embedding.weight": (config.num_queries, 2 * d), **linear("reference_points_fc", d, 2)}
    return shapes


def mmdetection_2(config: DeformableDETRConfig) -> Shapes:
    """List mmdetection 2's DeformableDETR, whose transformer lies in the head."""
    shapes = around_mmdetection(config) | general_transformer("bbox_head.transformer", config)
    shapes |= _starts("bbox_head.transformer", config)
    if not config.two_stage:
        shapes["bbox_head.query_embedding.weight"] = (config.num_queries, 2 * config.d_model)
    return shapes


def detrex(config: DeformableDETRConfig) -> Shapes:
    """List detrex's DeformableDETR with detectron2's ResNet; its decoder names the heads it uses a second time."""
    d, shapes = config.d_model, around_detrex(config) | _starts("transformer", config)
    for i in range(config.num_decoder_layers + config.two_stage):
        prefixes = ["", "transformer.decoder."] if config.with_box_refine else [""]
        for prefix in prefixes:
            for j, channels in enumerate((d, d, 4)):
                shapes |= linear(f"{prefix}bbox_embed.{i}.layers.{j}", d, channels)
        for prefix in ["", "transformer.decoder."] if config.two_stage else [""]:
            shapes |= linear(f"{prefix}class_embed.{i}", d, config.num_classes)
    if not config.two_stage:
        shapes["query_embedding.weight"] = (config.num_queries, 2 * d)
    return shapes


FOREIGN_NAMES: dict[str, Callable[[DeformableDETRConfig], Shapes]] = {
    "mmdetection_3": mmdetection_3,
    "mmdetection_2": mmdetection_2,
    "detrex": detrex,
}


def around_mmdetection(config: DeformableDETRConfig) -> Shapes:
    """List what mmdetection's models have around the transformer and its queries."""
    shapes: Shapes = {}
    for conv, batch, shape in resnet(config, detectron2=False):
        shapes |= {f"backbone.{conv}.weight": shape, **batch_norm(f"backbone.{batch}", shape[0], counts=True)}
    return shapes | neck(config, norm_name="gn", bias=False) | branches(config)


def around_detrex(config: DeformableDETRConfig) -> Shapes:
    """List what detrex's models have apart from queries and heads."""
    shapes: Shapes = {}
    for conv, batch, shape in resnet(config, detectron2=True):
        shapes |= {f"backbone.{conv}.weight": shape, **batch_norm(f"backbone.{batch}", shape[0], counts=False)}
    return shapes | neck(config, norm_name="norm", bias=True) | general_transformer("transformer", config)


def mmdetection_3_transformer(config: DeformableDETRConfig) -> Shapes:
    d = config.d_model
    shapes: Shapes = {"level_embed": (config.num_feature_levels, d)}
    for i in range(config.num_encoder_layers):
        layer = f"encoder.layers.{i}"
        shapes |= deformable_attention(f"{layer}.self_attn", config, config.enc_n_points)
        shapes |= feed_forward(f"{layer}.ffn", config) | norms(f"{layer}.norms", 2, d)
    for i in range(config.num_decoder_layers):
        layer = f"decoder.layers.{i}"
        shapes |= attention(f"{layer}.self_attn.attn", d)
        shapes |= deformable_attention(f"{layer}.cross_attn", config, config.dec_n_points)
        shapes |= feed_forward(f"{layer}.ffn", config) | norms(f"{layer}.norms", 3, d)
    return shapes


def resnet(config: DeformableDETRConfig, *, detectron2: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Return the names of every convolution and of the norm after it, and the convolution's shape."""
    assert isinstance(config.backbone, ResNetConfig)
    blocks, expansion = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}[config.backbone.name]
    yield ("stem.conv1", "stem.conv1.norm", (64, 3, 7, 7)) if detectron2 else ("conv1", "bn1", (64, 3, 7, 7))
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for index in range(count):
            block = f"res{stage + 2}.{index}" if detectron2 else f"layer{stage + 1}.{index}"
            out = expansion * width
            if expansion == 4:
                shapes = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            else:
                shapes = [(width, channels, 3, 3), (out, width, 3, 3)]
            for k, shape in enumerate(shapes, start=1):
                yield f"{block}.conv{k}", f"{block}.conv{k}.norm" if detectron2 else f"{block}.bn{k}", shape
            if channels != out:
                names = ("shortcut", "shortcut.norm") if detectron2 else ("downsample.0", "downsample.1")
                yield f"{block}.{names[0]}", f"{block}.{names[1]}", (out, channels, 1, 1)
            channels = out


def neck(config: DeformableDETRConfig, *, norm_name: str, bias: bool) -> Shapes:
    assert isinstance(config.backbone, ResNetConfig)
    widths = [64 << stage for stage in range(1, 4)]
    if config.backbone.name == "resnet50":
        widths = [4 * width for width in widths]
    given = widths[-min(3, config.num_feature_levels) :]
    shapes: Shapes = {}
    for level in range(config.num_feature_levels):
        extra = level - len(given)
        name = f"neck.convs.{level}" if extra < 0 else f"neck.extra_convs.{extra}"
        channels = given[level] if extra < 0 else given[-1] if extra == 0 else config.d_model
        kernel = 1 if extra < 0 else 3
        shapes[f"{name}.conv.weight"] = (config.d_model, channels, kernel, kernel)
        if bias:
            shapes[f"{name}.conv.bias"] = (config.d_model,)
        shapes |= norm(f"{name}.{norm_name}", config.d_model)
    return shapes


def general_transformer(prefix: str, config: DeformableDETRConfig) -> Shapes:
    """List a transformer made of layers that are lists of attentions, feed-forward layers and norms."""
    d = config.d_model
    shapes: Shapes = {f"{prefix}.level_embeds": (config.num_feature_levels, d)}
    for i in range(config.num_encoder_layers):
        layer = f"{prefix}.encoder.layers.{i}"
        shapes |= deformable_attention(f"{layer}.attentions.0", config, config.enc_n_points)
        shapes |= feed_forward(f"{layer}.ffns.0", config) | norms(f"{layer}.norms", 2, d)
    for i in range(config.num_decoder_layers):
        layer = f"{prefix}.decoder.layers.{i}"
        shapes |= attention(f"{layer}.attentions.0.attn", d)
        shapes |= deformable_attention(f"{layer}.attentions.1", config, config.dec_n_points)
        shapes |= feed_forward(f"{layer}.ffns.0", config) | norms(f"{layer}.norms", 3, d)
    return shapes


def _starts(prefix: str, config: DeformableDETRConfig) -> Shapes:
    """List what gives the queries of a Deformable DETR, in such a transformer."""
    d, shapes = config.d_model, {}
    if config.two_stage:
        shapes |= linear(f"{prefix}.enc_output", d, d) | norm(f"{prefix}.enc_output_norm", d)
        shapes |= linear(f"{prefix}.pos_trans", 2 * d, 2 * d) | norm(f"{prefix}.pos_trans_norm", 2 * d)
    else:
        shapes |= linear(f"{prefix}.reference_points", d, 2)
    return shapes


def branches(config: DeformableDETRConfig) -> Shapes:
    d, shapes = config.d_model, {}
    for i in range(config.num_decoder_layers + config.two_stage):
        shapes |= linear(f"bbox_head.cls_branches.{i}", d, config.num_classes)
        for place, channels in ((0, d), (2, d), (4, 4)):
            shapes |= linear(f"bbox_head.reg_branches.{i}.{place}", d, channels)
    return shapes


def deformable_attention(name: str, config: DeformableDETRConfig, n_points: int) -> Shapes:
    d, samples = config.d_model, config.n_heads * config.num_feature_levels * n_points
    return {
        **linear(f"{name}.sampling_offsets", d, 2 * samples),
        **linear(f"{name}.attention_weights", d, samples),
        **linear(f"{name}.value_proj", d, d),
        **linear(f"{name}.output_proj", d, d),
    }


def attention(name: str, d: int) -> Shapes:
    return {f"{name}.in_proj_weight": (3 * d, d), f"{name}.in_proj_bias": (3 * d,), **linear(f"{name}.out_proj", d, d)}


def feed_forward(name: str, config: DeformableDETRConfig) -> Shapes:
    return {
        **linear(f"{name}.layers.0.0", config.d_model, config.d_ffn),
        **linear(f"{name}.layers.1", config.d_ffn, config.d_model),
    }


def linear(name: str, channels: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, channels), f"{name}.bias": (out,)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def norms(name: str, count: int, channels: int) -> Shapes:
    return {key: shape for index in range(count) for key, shape in norm(f"{name}.{index}", channels).items()}


def batch_norm(name: str, channels: int, *, counts: bool) -> Shapes:
    parts: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**parts, **({f"{name}.num_batches_tracked": ()} if counts else {})}
