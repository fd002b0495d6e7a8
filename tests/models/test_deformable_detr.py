"""The assembled model: variants, padding, precision, compilation."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints import VARIANTS, tiny_config
from deformdetr import PRESETS, DeformableDETR
from deformdetr.config import LearnedPositionConfig, ResNetConfig
from deformdetr.nn import ProposalQueries
from deformdetr.structures import ImageBatch, Predictions
from targets import random_targets

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())

PARAMETERS = {
    "deformable_detr_r50_single_scale": (34_066_593, 33_844_193),
    "deformable_detr_r50_single_scale_dc5": (34_066_593, 33_844_193),
    "deformable_detr_r50": (40_069_665, 39_847_265),
    "deformable_detr_r50_refine": (40_849_660, 40_627_260),
    "deformable_detr_r50_two_stage": (41_181_529, 40_959_129),
    "demo": (491_213, 491_213),
}


def randomize(model: nn.Module) -> nn.Module:
    """Randomize all parameters: initial zeros would hide errors."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def flatten(outputs: Predictions) -> list[Tensor]:
    layers = [outputs, *outputs.get("aux_outputs", ()), *([outputs["enc_outputs"]] if "enc_outputs" in outputs else ())]
    return [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes")]


def assert_same(outputs: Predictions, expected: Predictions, **tolerance: float) -> None:
    pairs = itertools.zip_longest(flatten(outputs), flatten(expected))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_has_the_published_number_of_parameters(name):
    # On the meta device nothing is allocated or initialized.
    with torch.device("meta"):
        parameters = list(PRESETS[name].build().parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    counts = tuple(sum(parameter.numel() for parameter in group) for group in (parameters, trainable))
    assert counts == PARAMETERS[name]


def test_every_preset_is_counted():
    assert {name for name in PRESETS if name.startswith("deformable_detr") or name == "demo"} == set(PARAMETERS)


@variants
def test_shapes_and_keys_of_the_output(variant, rng):
    model = tiny_config(**variant).build()
    outputs = model(torch.randn(2, 3, 96, 128, generator=rng))
    levels = variant.get("num_feature_levels", 4)
    pixels = sum(h * w for h, w in ((12, 16), (6, 8), (3, 4), (2, 2))[-levels if levels > 1 else 2 :][:levels])
    assert outputs.keys() == {"pred_logits", "pred_boxes", "aux_outputs"} | (
        {"enc_outputs"} if variant.get("two_stage") else set()
    )
    assert [tuple(tensor.shape) for tensor in flatten(outputs)][:2] == [(2, 12, 5), (2, 12, 4)]
    assert len(outputs["aux_outputs"]) == 2
    if "enc_outputs" in outputs:
        assert outputs["enc_outputs"]["pred_logits"].shape == (2, pixels, 5)
        assert outputs["enc_outputs"]["pred_boxes"].shape == (2, pixels, 4)
    for tensor in flatten(outputs)[1::2]:
        assert tensor.min() >= 0
        assert tensor.max() <= 1


def test_without_aux_loss_only_the_last_layer_and_the_encoder_predict(rng):
    images = torch.randn(1, 3, 64, 64, generator=rng)
    model = tiny_config(two_stage=True, with_box_refine=True, aux_loss=False).build().eval()
    outputs = model(images)
    assert outputs.keys() == {"pred_logits", "pred_boxes", "enc_outputs"}
    model.aux_loss = True
    torch.testing.assert_close(outputs["pred_boxes"], model(images)["pred_boxes"], rtol=0, atol=0)


@pytest.mark.parametrize("levels", range(1, 7))
@pytest.mark.parametrize("two_stage", [False, True])
def test_one_to_six_levels_train(levels, two_stage, rng):
    config = tiny_config(num_feature_levels=levels, two_stage=two_stage, with_box_refine=two_stage)
    model = config.build()
    assert model.level_embed.shape == (levels, 16)
    criterion = config.build_criterion()
    losses = criterion(model(torch.randn(2, 3, 80, 112, generator=rng)), random_targets([2, 0], 5, rng))
    criterion.total(losses).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == set()


@pytest.mark.parametrize(("levels", "channels"), [(1, (24,)), (2, (16, 24)), (3, (8, 16, 24)), (5, (8, 16, 24))])
def test_levels_come_from_the_last_backbone_stages(levels, channels):
    model = tiny_config(num_feature_levels=levels).build()
    assert model.neck.in_channels == channels
    assert model.backbone.strides == (8, 16, 32)[-len(channels) :]


@pytest.mark.parametrize(("d_model", "n_heads", "norm_groups"), [(4, 1, 1), (12, 3, 2), (20, 5, 10), (36, 2, 9)])
@pytest.mark.parametrize("two_stage", [False, True])
def test_d_model_may_be_any_multiple_of_heads_and_groups(d_model, n_heads, norm_groups, two_stage, rng):
    changes = {"d_model": d_model, "n_heads": n_heads, "norm_groups": norm_groups, "two_stage": two_stage}
    outputs = tiny_config(**changes).build()(torch.randn(1, 3, 64, 64, generator=rng))
    assert all(tensor.isfinite().all() for tensor in flatten(outputs))


def test_learned_positions_and_a_small_resnet_with_trainable_norm(rng):
    backbone = ResNetConfig(name="resnet18", norm="batch", trainable_layers=5)
    config = tiny_config(backbone=backbone, position=LearnedPositionConfig(max_size=16))
    model = config.build()
    model(torch.randn(2, 3, 96, 64, generator=rng))["pred_boxes"].sum().backward()
    assert model.backbone.conv1.weight.grad is not None
    assert model.position.row_embed.weight.grad is not None


def test_fewer_pixels_than_queries_give_one_query_per_pixel(rng):
    # 96 x 96: 144 + 36 + 9 + 4 = 193 pixels for 300 proposals.
    config = tiny_config(two_stage=True, with_box_refine=True, num_queries=300)
    model, criterion = config.build(), config.build_criterion()
    outputs = model(torch.randn(1, 3, 96, 96, generator=rng))
    assert outputs["pred_boxes"].shape == (1, 193, 4)
    total = criterion.total(criterion(outputs, random_targets([3], 5, rng)))
    assert total.isfinite()
    assert config.build_postprocess()(outputs, [(96, 96)])[0]["scores"].shape == (100,)


def test_two_stages_without_refinement_keep_the_proposals_as_references(rng):
    model = randomize(tiny_config(two_stage=True).build())
    for parameter in model.decoder.box_heads.parameters():
        nn.init.zeros_(parameter)
    outputs = model(torch.randn(1, 3, 96, 96, generator=rng))
    proposals, scores = outputs["enc_outputs"]["pred_boxes"], outputs["enc_outputs"]["pred_logits"][..., 0]
    best = proposals.gather(1, scores.topk(12, dim=1).indices[..., None].expand(-1, -1, 4))
    for layer in (*outputs["aux_outputs"], outputs):
        torch.testing.assert_close(layer["pred_boxes"], best.clamp(1e-5, 1 - 1e-5), rtol=0, atol=1e-5)


@variants
def test_a_list_of_images_is_padded_to_a_batch(variant, rng):
    model = randomize(tiny_config(**variant).build())
    images = [torch.randn(3, *size, generator=rng) for size in ((96, 70), (64, 128))]
    batch = ImageBatch.from_images(images)
    assert batch.images.shape == (2, 3, 96, 128)
    assert_same(model(images), model(batch.images, batch.padding_mask), rtol=0, atol=0)


@variants
def test_no_mask_means_no_padding_and_one_image_is_a_batch(variant, rng):
    model = randomize(tiny_config(**variant).build())
    images = torch.randn(1, 3, 64, 96, generator=rng)
    expected = model(images, torch.zeros(1, 64, 96, dtype=torch.bool))
    assert_same(model(images), expected, rtol=0, atol=0)
    assert_same(model(list(images)), expected, rtol=0, atol=0)


@variants
def test_images_of_a_batch_do_not_affect_each_other(variant, rng):
    model = randomize(tiny_config(**variant).build()).double()
    images = torch.randn(3, 3, 64, 96, generator=rng, dtype=torch.float64)
    expected = model(images)["pred_boxes"][1:2]
    torch.testing.assert_close(model(images[1:2])["pred_boxes"], expected, rtol=0, atol=1e-9)


class PixelwiseBackbone(nn.Module):
    """Features without a receptive field, which are zero in the padding."""

    channels = (8, 16, 24)

    def __init__(self, out_layers: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = [2 << layer for layer in out_layers]
        self.channels = tuple(self.channels[layer - 2] for layer in out_layers)
        self.projections = nn.ModuleList(
            nn.Conv2d(3, d_out, stride, stride=stride, bias=False)
            for stride, d_out in zip(self.strides, self.channels, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        return [
            projection(F.pad(images, (0, -width % stride, 0, -height % stride)))
            for stride, projection in zip(self.strides, self.projections, strict=True)
        ]


def pixelwise_model(variant: dict[str, object]) -> DeformableDETR:
    """Build a model without group norm in its neck, which computes statistics over padding too."""
    model = tiny_config(**variant, num_queries=8).build()
    model.backbone = PixelwiseBackbone(model.backbone.out_layers)
    for level in model.neck.levels:
        level.norm = nn.Identity()
    randomize(model)
    if model.neck.levels[-1].conv.stride == (2, 2):
        nn.init.zeros_(model.neck.levels[-1].conv.bias)
    return model.double()


def prefer_pixels_that_propose(model: DeformableDETR, image: Tensor) -> None:
    """Let the best proposals score higher than padded pixels, as after training; padded pixels all have one score."""
    if not isinstance(model.queries, ProposalQueries):
        return
    queries, head = model.queries, model.queries.class_head
    nn.init.zeros_(queries.memory_projection.bias)
    nn.init.zeros_(queries.memory_norm.bias)
    with torch.no_grad():
        scores = model([image])["enc_outputs"]["pred_logits"][..., 0]
        if (scores > head.bias[0]).sum() < scores.numel() / 2:
            head.weight.neg_()


# After the backbone and the neck's group norm, padding changes nothing, as long as the size of the batch is a multiple
# of the coarsest stride. Then the resized mask leaves exactly the pixels that the image alone has.
@variants
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (100, 75), (65, 127)], ids=str)
def test_padding_changes_nothing_after_the_neck(variant, size, rng):
    model = pixelwise_model(variant)
    image = torch.randn(3, *size, generator=rng, dtype=torch.float64)
    other = torch.randn(3, 192, 256, generator=rng, dtype=torch.float64)
    prefer_pixels_that_propose(model, image)
    alone, padded = model([image]), model([image, other])
    for name in ("pred_logits", "pred_boxes"):
        # Reference points and position encodings are float32 even here.
        torch.testing.assert_close(padded[name][:1], alone[name], rtol=0, atol=1e-6)


# In a whole model padding changes boxes a little. Convolutions see zeros beyond the border of an image, but features of
# the padding inside a batch, and group norm averages over padding. The change depends on the weights. The mask must
# remove most of the change that padding makes without a mask.
def test_padding_moves_boxes_of_a_whole_model_little(rng):
    model = (
        tiny_config(backbone=ResNetConfig(name="resnet18"), d_model=64, num_queries=100, norm_groups=8).build().eval()
    )
    for head in model.decoder.box_heads:
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    image = torch.randn(3, 128, 160, generator=rng).cumsum(1).cumsum(2) / 30
    batch = ImageBatch.from_images([image, torch.randn(3, 192, 224, generator=rng)])
    alone = model([image])["pred_boxes"]
    masked = model(batch.images, batch.padding_mask)["pred_boxes"][:1]
    # The largest change is a matter of luck. Without the mask, the root mean square is 0.17 to 0.19.
    assert (masked - alone).square().mean().sqrt() < 0.02
    scale = torch.tensor([224 / 160, 192 / 128] * 2)
    unmasked = model(batch.images)["pred_boxes"][:1] * scale
    assert (masked - alone).abs().mean() < 0.3 * (unmasked - alone).abs().mean()


def test_boxes_do_not_depend_on_features_in_the_padding(rng):
    model = pixelwise_model({})
    batch = ImageBatch.from_images([torch.randn(3, *size, generator=rng).double() for size in ((64, 128), (128, 64))])
    # Not the coarsest level, whose convolution reaches across the border.
    dirty = torch.where(batch.padding_mask[:, None], torch.randn(2, 3, 128, 128, generator=rng).double(), batch.images)
    for level in list(model.neck.levels)[3:]:
        nn.init.zeros_(level.conv.weight)
    assert_same(model(dirty, batch.padding_mask), model(*batch), rtol=0, atol=1e-9)


@variants
def test_autocast_keeps_boxes_in_float32(variant, rng):
    config = tiny_config(**variant)
    model, criterion = config.build(), config.build_criterion()
    images = torch.randn(2, 3, 32, 64, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images)
        losses = criterion(outputs, random_targets([2, 1], 5, rng))
    assert outputs["pred_logits"].dtype == torch.bfloat16
    for boxes in flatten(outputs)[1::2]:
        assert boxes.dtype == torch.float32
        assert boxes.isfinite().all()
    criterion.total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@variants
@pytest.mark.parametrize(("dtype", "boxes"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_other_dtypes_run_and_agree_with_float32(variant, dtype, boxes, rng):
    model = tiny_config(**variant).build().eval()
    images = torch.randn(1, 3, 64, 96, generator=rng)
    expected = model(images)
    outputs = model.to(dtype)(images.to(dtype))
    assert outputs["pred_logits"].dtype == dtype
    assert outputs["pred_boxes"].dtype == boxes
    if dtype == torch.float64:
        tolerance = {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close(outputs["pred_boxes"].float(), expected["pred_boxes"], **tolerance)
    assert outputs["pred_boxes"].isfinite().all()


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        (torch.zeros(3, 32, 32), None, r"\(batch, 3, height, width\), got \(3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), None, r"got \(1, 4, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 31, dtype=torch.bool), r"padding_mask \(1, 32, 31\)"),
        ([torch.zeros(3, 32, 32)], torch.zeros(1, 32, 32, dtype=torch.bool), "a list of images is padded here"),
    ],
)
def test_images_of_another_shape_are_refused(images, mask, message):
    model = tiny_config().build()
    # Unwrapped, because the test session checks annotated shapes.
    forward = getattr(DeformableDETR.forward, "__wrapped__", DeformableDETR.forward)
    with pytest.raises(ValueError, match=message):
        forward(model, images, mask)


def test_the_number_of_class_heads_must_fit_the_decoder():
    model = tiny_config().build()
    parts = {name: getattr(model, name) for name in ("backbone", "neck", "position", "encoder", "queries", "decoder")}
    with pytest.raises(ValueError, match="one for each of 3 layers; got 2"):
        DeformableDETR(**parts, class_heads=[nn.Linear(16, 5), nn.Linear(16, 5)])


@pytest.mark.gpu
@variants
def test_forward_never_waits_for_the_gpu(variant):
    model = tiny_config(**variant).build().cuda()
    images = torch.randn(2, 3, 96, 128, device="cuda")
    mask = torch.zeros(2, 96, 128, dtype=torch.bool, device="cuda")
    mask[1, 64:] = True
    model(images, mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for mode in (True, False):
            model.train(mode)(images, mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def padded_batch(height: int, width: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, height, width, generator=rng)
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, height // 2 :] = True
    return images.masked_fill(mask[:, None], 0), mask


@pytest.mark.compile
@pytest.mark.parametrize("training", [False, True])
def test_compiled_demo_has_one_graph_and_the_same_results(training, rng):
    torch.compiler.reset()
    model = PRESETS["demo"].build().train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = padded_batch(128, 96, rng)
    outputs, expected = compiled(*batch), model(*batch)
    assert_same(outputs, expected, rtol=0, atol=1e-5)
    if training:
        weight = model.encoder.layers[0].self_attn.sampling_offsets.weight
        mine, theirs = (torch.autograd.grad(out["pred_boxes"].square().sum(), weight)[0] for out in (outputs, expected))
        torch.testing.assert_close(mine, theirs)


@pytest.mark.compile
def test_exported_demo_serves_other_sizes(rng):
    model = PRESETS["demo"].build().eval()
    batch, height, width = torch.export.Dim("batch", max=8), *(torch.export.Dim(n, min=3, max=32) for n in "hw")
    height, width = 64 * height, 64 * width
    shapes = ({0: batch, 2: height, 3: width}, {0: batch, 1: height, 2: width})
    program = torch.export.export(model, padded_batch(256, 192, rng), dynamic_shapes=shapes)
    inputs = padded_batch(192, 320, rng)
    assert_same(program.module()(*inputs), model(*inputs), rtol=0, atol=1e-5)
