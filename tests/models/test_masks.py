"""Models with masks, and the conversion of masks to the pixels of images."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints import VARIANTS, tiny_config, tiny_detr_config
from deformdetr import DeformableDETRConfig, Detector, DETRConfig
from deformdetr.config import ResNetConfig
from deformdetr.models import SigmoidPostProcess, SoftmaxPostProcess
from deformdetr.nn import FeatureBackbone
from deformdetr.structures import ImageBatch
from targets import random_targets

ANCHORS = {"with_box_refine": True, "anchor_queries": True}
MIXED = ANCHORS | {"two_stage": True, "query_selection": "mixed", "decoder_norm": True}
CONFIGS: dict[str, DeformableDETRConfig | DETRConfig] = {
    **{name: tiny_config(masks=True, **variant) for name, variant in VARIANTS.items()},
    "dn": tiny_config(masks=True, **ANCHORS, denoising={"kind": "dn", "num_groups": 2}),
    "dino": tiny_config(masks=True, **MIXED, denoising={"kind": "cdn", "dn_number": 6}),
    **{
        f"detr_{kind}": tiny_detr_config(num_queries=9, num_decoder_layers=2, criterion={"kind": kind}, masks=True)
        for kind in ("softmax", "focal")
    },
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
SIZES = ((64, 92), (80, 64))


def images_and_targets(counts: tuple[int, int], rng: torch.Generator) -> tuple[list[Tensor], list[Any]]:
    targets = random_targets(counts, 5, rng)
    for target, size in zip(targets, SIZES, strict=True):
        target["masks"] = torch.rand(len(target["labels"]), *size, generator=rng) > 0.5
    return [torch.randn(3, *size, generator=rng) for size in SIZES], targets


def without_masks(config: Any) -> Any:
    return config.replace(masks=False)


@configs
@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (14, 2)], ids=["some", "none", "more_than_queries"])
def test_everything_that_trains_gets_a_gradient(config: Any, counts: tuple[int, int], rng: torch.Generator) -> None:
    model, criterion = config.build().train(), config.build_criterion()
    images, targets = images_and_targets(counts, rng)
    outputs = model(images, targets=targets) if getattr(config, "denoising", None) else model(images)
    assert outputs["pred_masks"].shape == (2, config.num_queries, 20, 23)
    torch.testing.assert_close(outputs["valid_ratios"], torch.tensor([[1.0, 0.8], [64 / 92, 1.0]]))
    assert not any("pred_masks" in layer for layer in outputs["aux_outputs"])
    losses = criterion(outputs, targets)
    assert {"loss_mask", "loss_dice"} <= criterion.weighted(losses).keys()
    criterion.total(losses).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.any() for parameter in model.mask_head.parameters()) == (sum(counts) > 0)


@configs
def test_without_masks_nothing_else_changes(config: Any, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    plain = without_masks(config).build().eval()
    torch.manual_seed(0)
    model = config.build().eval()
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert {name.partition(".")[0] for name in added} == {"mask_head"}
    assert plain.state_dict().keys() <= model.state_dict().keys()
    model.load_state_dict(plain.state_dict(), strict=False)
    images, _ = images_and_targets((0, 0), rng)
    outputs, expected = model(images), plain(images)
    assert outputs.keys() - expected.keys() == {"pred_masks", "valid_ratios"}
    torch.testing.assert_close({key: outputs[key] for key in expected}, expected, rtol=0, atol=0)
    assert len(plain.backbone.channels) < len(model.backbone.channels) == 4
    weights = without_masks(config).build_criterion().weights
    assert not {"loss_mask", "loss_dice"} & weights.keys()


@configs
def test_without_gradients_masks_are_the_same(config: Any, rng: torch.Generator) -> None:
    model = config.build().eval()
    images, _ = images_and_targets((0, 0), rng)
    expected = model(images)["pred_masks"]
    with torch.no_grad():
        torch.testing.assert_close(model(images)["pred_masks"], expected.detach())


@pytest.mark.parametrize("name", ["multi_scale", "detr_softmax"])
def test_training_works_in_lower_precision(name: str, rng: torch.Generator) -> None:
    model, criterion = CONFIGS[name].build().train(), CONFIGS[name].build_criterion()
    images, targets = images_and_targets((3, 0), rng)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        losses = criterion(outputs, targets)
    criterion.total(losses).backward()
    assert outputs["pred_masks"].dtype == torch.bfloat16
    assert losses["loss_mask"].dtype == losses["loss_dice"].dtype == torch.float32
    gradients = [parameter.grad for parameter in model.mask_head.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["dn", "dino"])
def test_denoising_queries_get_no_masks_and_change_none(name: str, rng: torch.Generator) -> None:
    config = CONFIGS[name].replace(dropout=0.0)
    model = config.build().train()
    images, targets = images_and_targets((3, 1), rng)
    noised = model(images, targets=targets)
    assert "pred_masks" not in noised["dn_outputs"]
    torch.testing.assert_close(noised["pred_masks"], model.eval()(images)["pred_masks"])


@pytest.mark.parametrize(
    ("levels", "dilation", "stride"), [(1, False, 32), (1, True, 16), (3, False, 32), (4, True, 16), (5, False, 32)]
)
def test_queries_attend_to_the_level_of_the_last_backbone_feature(
    levels: int, dilation: bool, stride: int, rng: torch.Generator
) -> None:
    backbone = ResNetConfig(name="resnet50", dilation=dilation, norm="group")
    model = tiny_config(num_feature_levels=levels, backbone=backbone, masks=True).build().eval()
    seen: dict[str, Any] = {}

    def record(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen["memory"], seen["features"], seen["laterals"] = given[1:4]

    model.mask_head.register_forward_pre_hook(record)
    encoded: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _, given, memory: encoded.append(memory))
    pyramids: list[list[Tensor]] = []
    model.neck.register_forward_hook(lambda _, given, pyramid: pyramids.append(pyramid))
    with torch.no_grad():
        masks = model(torch.randn(1, 3, 64, 96, generator=rng))["pred_masks"]
    size = (64 // stride, 96 // stride)
    level = min(3, levels) - 1
    assert masks.shape[-2:] == (16, 24)
    assert seen["memory"].shape[-2:] == size
    assert seen["features"] is pyramids[0][level]
    start = sum(each.shape[-2] * each.shape[-1] for each in pyramids[0][:level])
    expected = encoded[0][:, start : start + size[0] * size[1]].transpose(1, 2).reshape(1, 16, *size)
    assert torch.equal(seen["memory"], expected)
    assert [tuple(each.shape[1:]) for each in seen["laterals"]] == [(256, 16, 24), (512, 8, 12), (1024, 4, 6)]


def test_detr_masks_use_the_projected_feature_map_and_all_finer_ones(rng: torch.Generator) -> None:
    config = CONFIGS["detr_softmax"].replace(backbone=ResNetConfig(name="resnet50", dilation=True))
    model = config.build().eval()
    shapes: list[list[tuple[int, ...]]] = []
    model.mask_head.register_forward_pre_hook(
        lambda _, given: shapes.append([tuple(each.shape[1:]) for each in (*given[1:3], *given[3])])
    )
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96, generator=rng))
    assert shapes == [[(16, 4, 6), (16, 4, 6), (256, 16, 24), (512, 8, 12), (1024, 4, 6)]]


class Strided(nn.Module):
    """Average pooling by several strides."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.strides = strides

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, stride) for stride in self.strides]


def strided(*strides: int) -> FeatureBackbone:
    return FeatureBackbone(Strided(*strides), channels=[3] * len(strides), strides=strides)


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32), (2, 4, 8, 16, 32), (16, 32)])
@pytest.mark.parametrize("name", ["multi_scale", "single_scale", "detr_softmax"])
def test_a_custom_backbone_works_with_its_finer_features(
    name: str, strides: tuple[int, ...], rng: torch.Generator
) -> None:
    model = CONFIGS[name].build(backbone=strided(*strides)).eval()
    with torch.no_grad():
        masks = model(torch.randn(1, 3, 64, 96, generator=rng))["pred_masks"]
    finest = max(strides[0], 4)
    assert masks.shape[-2:] == (64 // finest, 96 // finest)
    assert len(model.mask_head.laterals) == min(3, len(strides) - 1)


@pytest.mark.parametrize("name", ["multi_scale", "detr_softmax"])
def test_a_backbone_without_finer_features_is_refused_with_its_strides(name: str) -> None:
    with pytest.raises(ValueError, match=r"masks=True needs .* finer features .* this one has strides \(32,\)"):
        CONFIGS[name].build(backbone=strided(32))


def test_networks_of_timm_work_with_masks(rng: torch.Generator) -> None:
    config = tiny_config(masks=True, backbone={"kind": "timm", "name": "resnet10t"})
    model = config.build().eval()
    assert model.backbone.strides == (4, 8, 16, 32)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96, generator=rng))["pred_masks"].shape == (1, 12, 16, 24)
    with pytest.raises(ValueError, match=r"takes 4 feature maps, but out_indices are \(2, 3, 4\)"):
        config.replace(backbone={"kind": "timm", "name": "resnet10t", "out_indices": (2, 3, 4)}).build()


@configs
def test_a_config_with_masks_round_trips(config: Any) -> None:
    changed = config.replace(mask_loss_coef=2.5, dice_loss_coef=0.0)
    assert type(config).model_validate_json(changed.model_dump_json()) == changed
    weights = changed.build_criterion().weights
    assert (weights["loss_mask"], weights["loss_dice"]) == (2.5, 0.0)
    assert type(config)().masks is False


def predictions(rng: torch.Generator, *, queries: int = 6) -> Any:
    return {
        "pred_logits": torch.randn(2, queries, 3, generator=rng),
        "pred_boxes": torch.rand(2, queries, 4, generator=rng),
        "pred_masks": torch.randn(2, queries, 6, 8, generator=rng) * 4,
    }


@pytest.mark.parametrize("postprocess", [SigmoidPostProcess(top_k=11), SoftmaxPostProcess()])
def test_masks_of_detections_are_those_of_their_queries(postprocess: Any, rng: torch.Generator) -> None:
    outputs = predictions(rng)
    queries = postprocess.select(outputs).queries
    for image, (found, size) in enumerate(
        zip(postprocess(outputs, [(24, 32), (30, 11)]), [(24, 32), (30, 11)], strict=True)
    ):
        assert found["masks"].shape == (len(found["scores"]), 1, *size)
        chosen = outputs["pred_masks"][image, queries[image]].unsqueeze(1)
        expected = F.interpolate(chosen, size, mode="bilinear", align_corners=False).sigmoid()
        torch.testing.assert_close(found["masks"], expected, rtol=0, atol=1e-5)
        boxes = outputs["pred_boxes"][image, queries[image]] * torch.tensor([size[1], size[0]] * 2)
        torch.testing.assert_close((found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2, boxes[:, :2])


def test_padding_is_cut_away_before_masks_are_enlarged(rng: torch.Generator) -> None:
    outputs = predictions(rng)
    # In a batch of 48 x 64 pixels the first image has 48 x 32, the second 24 x 48. Their originals are twice as large.
    outputs["valid_ratios"] = torch.tensor([[0.5, 1.0], [0.75, 0.5]])
    for image, (found, (height, width)) in enumerate(
        zip(SoftmaxPostProcess()(outputs, [(96, 64), (48, 96)]), [(48, 32), (24, 48)], strict=True)
    ):
        padded = F.interpolate(outputs["pred_masks"][image, :, None], (96, 128), mode="bilinear", align_corners=False)
        expected = padded[:, :, : 2 * height, : 2 * width].sigmoid()
        torch.testing.assert_close(found["masks"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("postprocess", [SigmoidPostProcess(top_k=11), SoftmaxPostProcess()])
def test_masks_do_not_depend_on_how_much_an_image_is_padded(postprocess: Any, rng: torch.Generator) -> None:
    # The features of a backbone depend on padding, so the test starts from mask logits.
    logits = torch.randn(1, 6, 20, 23, generator=rng)
    base = {
        "pred_logits": torch.randn(1, 6, 3, generator=rng),
        "pred_boxes": torch.rand(1, 6, 4, generator=rng),
    }
    alone = postprocess({**base, "pred_masks": logits, "valid_ratios": torch.ones(1, 2)}, [(80, 92)])
    wide = F.pad(logits, (0, 23, 0, 20), mode="replicate")
    padded = postprocess({**base, "pred_masks": wide, "valid_ratios": torch.full((1, 2), 0.5)}, [(80, 92)])
    torch.testing.assert_close(padded[0]["masks"], alone[0]["masks"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_thresholded_masks_are_boolean(threshold: float, rng: torch.Generator) -> None:
    outputs = predictions(rng, queries=19)
    sizes = torch.tensor([[24, 32], [30, 11]])
    for found, probable in zip(
        SoftmaxPostProcess(mask_threshold=threshold)(outputs, sizes), SoftmaxPostProcess()(outputs, sizes), strict=True
    ):
        assert found["masks"].dtype == torch.bool
        assert probable["masks"].dtype == torch.float32
        assert torch.equal(found["masks"], probable["masks"] > threshold)
        assert found["masks"].any()
        assert not found["masks"].all()


def test_half_precision_gives_probabilities_in_float32(rng: torch.Generator) -> None:
    outputs = predictions(rng)
    half = {**outputs, "pred_masks": outputs["pred_masks"].bfloat16()}
    rounded = {**outputs, "pred_masks": outputs["pred_masks"].bfloat16().float()}
    sizes = [(24, 32), (30, 11)]
    torch.testing.assert_close(SoftmaxPostProcess()(half, sizes), SoftmaxPostProcess()(rounded, sizes))


def detector(config: Any) -> Detector:
    return Detector(config.build(), config.build_criterion(), config.build_postprocess(), min_size=64, max_size=96)


def pixel_targets(images: list[Tensor], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Return targets of torchvision's Mask R-CNN: two objects in the first image, none in the others."""
    targets = []
    for index, image in enumerate(images):
        count = 0 if index else 2
        boxes = torch.tensor([[4.0, 2.0, 20.0, 30.0], [10.0, 8.0, 40.0, 24.0]])[:count]
        masks = torch.zeros(count, *image.shape[-2:], dtype=dtype)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets.append({"boxes": boxes, "labels": torch.arange(count), "masks": masks})
    return targets


@configs
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_detector_has_the_interface_of_mask_rcnn(config: Any, dtype: torch.dtype, rng: torch.Generator) -> None:
    images = [torch.rand(3, 32, 44, generator=rng), torch.rand(3, 40, 32, generator=rng)]
    model = detector(config)
    losses = model.train()(images, pixel_targets(images, dtype))
    assert {"loss_mask", "loss_dice"} <= losses.keys()
    sum(losses.values()).backward()
    with torch.no_grad():
        found = model.eval()(images)
    for of_image, image in zip(found, images, strict=True):
        assert of_image["masks"].shape == (len(of_image["scores"]), 1, *image.shape[-2:])
        assert of_image["masks"].dtype == torch.float32
        assert 0 <= of_image["masks"].min() <= of_image["masks"].max() <= 1


def test_detector_resizes_masks_with_their_images(rng: torch.Generator) -> None:
    model = detector(CONFIGS["detr_softmax"]).train()
    images = [torch.rand(3, 32, 44, generator=rng), torch.rand(3, 40, 32, generator=rng)]
    given = pixel_targets(images, torch.uint8)
    seen: list[Any] = []
    model.criterion.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model(images, given)
    assert [tuple(target["masks"].shape) for target in seen[0]] == [(2, 64, 88), (0, 80, 64)]
    doubled = given[0]["masks"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(seen[0][0]["masks"], doubled.bool())


def test_detector_refuses_masks_that_do_not_fit(rng: torch.Generator) -> None:
    model = detector(CONFIGS["detr_softmax"]).train()
    images = [torch.rand(3, 32, 44, generator=rng), torch.rand(3, 40, 32, generator=rng)]
    targets = pixel_targets(images, torch.uint8)
    targets[1]["masks"] = torch.zeros(0, 32, 40)
    with pytest.raises(ValueError, match=r"masks of target 1 must have shape \(n, 40, 32\).*got \(0, 32, 40\)"):
        model(images, targets)
    del targets[1]["masks"]
    with pytest.raises(ValueError, match="predicts masks, but targets of image 1 have only boxes, labels"):
        model(images, targets)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["two_stage", "detr_softmax"])
@pytest.mark.parametrize("training", [False, True])
def test_compiled_models_have_one_graph_and_the_same_masks(name: str, training: bool, rng: torch.Generator) -> None:
    torch.compiler.reset()
    model = CONFIGS[name].replace(dropout=0.0).build().train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = ImageBatch.from_images([torch.randn(3, *size, generator=rng) for size in SIZES])
    with torch.set_grad_enabled(training):
        outputs, expected = compiled(*batch), model(*batch)
    torch.testing.assert_close(outputs["pred_masks"], expected["pred_masks"], rtol=0, atol=1e-4)
    if training:
        weight = model.mask_head.attention_maps.key_proj.weight
        mine, theirs = (torch.autograd.grad(o["pred_masks"].square().mean(), weight)[0] for o in (outputs, expected))
        torch.testing.assert_close(mine, theirs)
