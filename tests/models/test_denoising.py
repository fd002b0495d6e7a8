"""Models with denoising: no information leaks, every parameter has a gradient, and evaluation does not change."""

import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from checkpoints import tiny_config
from deformdetr import PRESETS, Detector
from deformdetr.models import DeformableDETR, needs_targets
from deformdetr.nn import NoisedQueries
from targets import random_targets

STATIC = {"with_box_refine": True, "anchor_queries": True, "query_scale": True, "inverse_sigmoid_eps": 1e-3}
MIXED = {
    **STATIC,
    "two_stage": True,
    "query_selection": "mixed",
    "look_forward_twice": True,
    "decoder_norm": True,
    "share_heads": True,
    "query_scale": False,
}
VARIANTS = {
    "dn": {**STATIC, "denoising": {"kind": "dn", "num_groups": 2}},
    "cdn": {**MIXED, "denoising": {"kind": "cdn", "dn_number": 6}},
    "cdn_static": {**STATIC, "denoising": {"kind": "cdn", "dn_number": 6}},
    "dn_mixed": {**MIXED, "denoising": {"kind": "dn", "num_groups": 2}},
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
PARAMETERS = {"dn_deformable_detr_r50": (47_429_154, 47_206_754), "dino_r50_4scale": (46_893_182, 46_670_782)}


def tiny(variant, **changes):
    return tiny_config(**{"dropout": 0.0, **variant, **changes})


def randomize(model: nn.Module) -> nn.Module:
    """Randomize all parameters: initial box heads do not move boxes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


# The numbers agree with those of the published implementations with their configs.
@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        parameters = list(PRESETS[name].build().parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    assert tuple(sum(p.numel() for p in group) for group in (parameters, trainable)) == PARAMETERS[name]


def test_parameters_of_dino_add_up_from_its_parts():
    with torch.device("meta"):
        model = PRESETS["dino_r50_4scale"].build()
    sizes = Counter()
    for name, parameter in model.named_parameters():
        sizes[".".join(name.split(".")[: 2 if name.startswith(("decoder", "queries")) else 1])] += parameter.numel()
    d, ffn, points = 256, 2048, 8 * 4 * 4
    attention = d * (3 * points) + 3 * points + 2 * (d * d + d)
    feed_forward = d * ffn + ffn + ffn * d + d
    head = 2 * (d * d + d) + d * 4 + 4
    assert sizes["encoder"] == 6 * (attention + feed_forward + 2 * 2 * d)
    assert sizes["decoder.layers"] == 6 * (attention + feed_forward + 3 * 2 * d + 4 * (d * d + d))
    assert sizes["decoder.box_heads"] == sizes["queries.box_head"] == head
    assert sizes["decoder.position"] == 2 * d * d + d + d * d + d
    assert sizes["decoder.norm"] == 2 * d
    assert sizes["class_heads"] == sizes["queries.class_head"] == d * 91 + 91
    assert sizes["queries.content"] == 900 * d
    assert sizes["denoising"] == 92 * d


@variants
def test_denoising_predictions_are_separate_outputs(variant, rng):
    model, targets = tiny(variant).build(), random_targets([3, 1], 5, rng)
    outputs = model(torch.randn(2, 3, 64, 96, generator=rng), targets=targets)
    noised = outputs["dn_outputs"]
    contrastive = variant["denoising"]["kind"] == "cdn"
    assert outputs["pred_logits"].shape == (2, 12, 5)
    assert noised["pred_logits"].shape == (2, 12 if contrastive else 6, 5)
    assert (noised["num_groups"], noised["has_negatives"]) == (2, contrastive)
    assert len(outputs["aux_outputs"]) == len(noised["aux_outputs"]) == 2
    assert ("interm_outputs" in outputs) == variant.get("two_stage", False)
    if "interm_outputs" in outputs:
        assert outputs["interm_outputs"]["pred_logits"].shape == (2, 12, 5)


def test_without_aux_loss_only_the_last_layer_predicts(rng):
    model = tiny(VARIANTS["cdn"], aux_loss=False).build()
    outputs = model(torch.randn(1, 3, 64, 64, generator=rng), targets=random_targets([1], 5, rng))
    assert "aux_outputs" not in outputs
    assert "aux_outputs" not in outputs["dn_outputs"]


@variants
def test_evaluation_is_the_same_with_and_without_denoising(variant, rng):
    model = randomize(tiny(variant).build()).eval()
    images = torch.randn(2, 3, 64, 96, generator=rng)
    with_it, with_targets = model(images), model(images, targets=random_targets([3, 1], 5, rng))
    model.denoising = None
    for outputs in (with_it, with_targets):
        expected = model.train()(images)
        assert outputs.keys() == expected.keys()
        assert torch.equal(outputs["pred_logits"], expected["pred_logits"])
        assert torch.equal(outputs["pred_boxes"], expected["pred_boxes"])


def leaf_queries(model, targets, monkeypatch):
    """Replace the denoising queries of the model by leaves of the graph."""
    noised = model.denoising(targets)
    content, boxes = noised.content.detach().requires_grad_(), noised.reference_points.detach().requires_grad_()
    leaves = NoisedQueries(content, boxes, noised.num_groups, noised.has_negatives)
    monkeypatch.setattr(model, "_noise", lambda targets, num_images: leaves)
    return leaves


@variants
def test_matched_queries_learn_nothing_from_noised_targets(variant, rng, monkeypatch):
    model, targets = randomize(tiny(variant).build()).double(), random_targets([3, 1], 5, rng, torch.float64)
    images = torch.randn(2, 3, 64, 96, generator=rng, dtype=torch.float64)
    noised = leaf_queries(model, targets, monkeypatch)
    outputs = model(images)
    layers = (outputs, *outputs["aux_outputs"])
    total = sum(layer["pred_logits"].square().sum() + layer["pred_boxes"].sum() for layer in layers)
    gradients = torch.autograd.grad(total, (noised.content, noised.reference_points), allow_unused=True)
    assert not any(gradient.any() for gradient in gradients)
    model.denoising = None
    monkeypatch.undo()
    torch.testing.assert_close(outputs["pred_boxes"], model(images)["pred_boxes"], rtol=0, atol=1e-12)


@variants
def test_groups_do_not_see_each_other(variant, rng, monkeypatch):
    model, targets = randomize(tiny(variant).build()).double(), random_targets([3, 1], 5, rng, torch.float64)
    noised = leaf_queries(model, targets, monkeypatch)
    outputs = model(torch.randn(2, 3, 64, 96, generator=rng, dtype=torch.float64))["dn_outputs"]
    places = noised.content.shape[1] // 2
    # Only logits of the last layer: references are detached.
    gradient = torch.autograd.grad(outputs["pred_logits"][0, :places].square().sum(), noised.content)[0]
    assert not gradient[:, places:].any()
    assert not gradient[1].any()
    assert gradient[0, :places].any(-1).all()


@variants
@pytest.mark.parametrize("counts", [[3, 1], [2, 0], [0, 0]], ids=["some", "one image without", "none"])
def test_every_parameter_has_a_gradient_for_any_number_of_targets(variant, counts, rng):
    config = tiny(variant)
    model, criterion = config.build(), config.build_criterion()
    targets = random_targets(counts, 5, rng)
    losses = criterion(model(torch.randn(2, 3, 64, 96, generator=rng), targets=targets), targets)
    criterion.total(losses).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.denoising.label_embedding.weight.grad.any() == (sum(counts) > 0)
    assert {"loss_ce_dn", "loss_bbox_dn", "loss_giou_dn_1"} <= losses.keys()
    assert (losses["loss_bbox_dn"] > 0) == (sum(counts) > 0)


@variants
def test_autocast_keeps_boxes_in_float32(variant, rng):
    config, targets = tiny(variant), random_targets([2, 1], 5, rng)
    model, criterion = config.build(), config.build_criterion()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(torch.randn(2, 3, 64, 64, generator=rng), targets=targets)
        total = criterion.total(criterion(outputs, targets))
    assert outputs["dn_outputs"]["pred_boxes"].dtype == outputs["pred_boxes"].dtype == torch.float32
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@variants
def test_bfloat16_runs(variant, rng):
    model, targets = tiny(variant).build().bfloat16(), random_targets([2, 1], 5, rng)
    outputs = model(torch.randn(2, 3, 64, 64, generator=rng).bfloat16(), targets=targets)
    assert outputs["dn_outputs"]["pred_logits"].dtype == torch.bfloat16
    assert outputs["dn_outputs"]["pred_boxes"].isfinite().all()


def test_training_needs_one_target_per_image(rng):
    model, images = tiny(VARIANTS["cdn"]).build(), torch.randn(2, 3, 64, 64, generator=rng)
    with pytest.raises(ValueError, match="targets must be given in training to a model that denoises"):
        inspect.unwrap(DeformableDETR.forward)(model, images)
    with pytest.raises(ValueError, match="there are 2 images, but targets for 1"):
        inspect.unwrap(DeformableDETR.forward)(model, images, targets=random_targets([1], 5, rng))


def test_models_that_do_not_denoise_need_no_targets(rng):
    assert needs_targets(tiny(VARIANTS["cdn"]).build())
    model = tiny(STATIC).build()
    assert not needs_targets(model)
    assert "dn_outputs" not in model(torch.randn(1, 3, 64, 64, generator=rng), targets=random_targets([1], 5, rng))


def test_detector_passes_targets_to_the_model(rng):
    config = tiny(VARIANTS["cdn"])
    detector = Detector(config.build(), config.build_criterion(), config.build_postprocess(), min_size=64)
    images = [torch.rand(3, 64, 80, generator=rng), torch.rand(3, 64, 64, generator=rng)]
    boxes = torch.tensor([[8.0, 4.0, 40.0, 60.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([2])}, {"boxes": boxes[:0], "labels": torch.tensor([]).long()}]
    losses = detector(images, targets)
    assert {"loss_ce", "loss_ce_interm", "loss_ce_dn", "loss_giou_dn_0"} <= losses.keys()
    assert len(detector.eval()(images)) == 2
    degenerate = [{"boxes": boxes[:, [2, 1, 0, 3]], "labels": torch.tensor([2])}, targets[1]]
    with pytest.raises(ValueError, match=r"positive width and height; target 0 has \[\[40.0, 4.0, 8.0, 60.0\]\]"):
        detector.train()(images, degenerate)


def _train_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for kind, variant in VARIANTS.items():
        torch.manual_seed(0)
        config = tiny(variant)
        model, criterion = config.build(), config.build_criterion()
        # By default DistributedDataParallel raises an error in the second step if a parameter was unused.
        wrapped = DistributedDataParallel(model)
        generator = torch.Generator().manual_seed(rank)
        for counts in ([0, 0], [2, 1]) if rank else ([2, 3], [0, 0]):
            images, targets = torch.randn(2, 3, 64, 64, generator=generator), random_targets(counts, 5, generator)
            criterion.total(criterion(wrapped(images, targets=targets), targets)).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save(gradients, f"{folder}/{kind}{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_together_when_one_has_no_targets(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_in_process, args=(str(tmp_path),), nprocs=2)
    for kind in VARIANTS:
        first, second = (torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True) for rank in range(2))
        for name, gradient in first.items():
            assert torch.equal(gradient, second[name]), name
        assert first["denoising.label_embedding.weight"].any()


@pytest.mark.gpu
@variants
def test_denoising_never_waits_for_the_gpu(variant, rng):
    model = tiny(variant).build().cuda()
    images = torch.randn(2, 3, 64, 96, device="cuda")
    targets = [{name: value.cuda() for name, value in target.items()} for target in random_targets([3, 1], 5, rng)]
    model(images, targets=targets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(images, targets=targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.compile
@pytest.mark.slow
def test_compiled_model_denoises_in_training_and_agrees_in_evaluation(rng):
    torch.compiler.reset()
    config = tiny(VARIANTS["cdn"], num_encoder_layers=1, num_decoder_layers=2, num_feature_levels=2)
    model, targets = randomize(config.build()), random_targets([3, 1], 5, rng)
    images = torch.randn(2, 3, 64, 96, generator=rng)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert compiled(images, targets=targets)["dn_outputs"]["pred_boxes"].isfinite().all()
    model.eval()
    torch.testing.assert_close(compiled(images)["pred_boxes"], model(images)["pred_boxes"], rtol=0, atol=1e-4)
