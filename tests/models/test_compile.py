"""Whole models under torch.compile."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from checkpoints import tiny_config, tiny_detr_config
from deformdetr.config import DeformableDETRConfig, DETRConfig, ResNetConfig
from deformdetr.structures import ImageBatch
from targets import random_targets

pytestmark = pytest.mark.compile

# Symbolic sizes get longer with every level, and so does tracing.
SMALL: dict[str, Any] = {"num_encoder_layers": 1, "num_decoder_layers": 1, "dropout": 0.0}
LEVELS = {"num_feature_levels": 2}
VARIANTS: dict[str, DeformableDETRConfig | DETRConfig] = {
    "single_scale": tiny_config(**SMALL, num_feature_levels=1),
    "single_scale_resnet": tiny_config(**SMALL, num_feature_levels=1, backbone=ResNetConfig(name="resnet18")),
    "box_refine": tiny_config(**SMALL | {"num_decoder_layers": 2}, **LEVELS, with_box_refine=True),
    "two_stage": tiny_config(**SMALL, **LEVELS, with_box_refine=True, two_stage=True),
    "detr": tiny_detr_config(**SMALL),
}
# Several sizes: one graph for the first, one for all others.
SIZES = [
    [(96, 130), (70, 128)],
    [(160, 72), (100, 90), (66, 66)],
    [(70, 201), (96, 80)],
    [(96, 96), (90, 66), (77, 81), (66, 96)],
]


def batch_of(sizes: list[tuple[int, int]], rng: torch.Generator) -> ImageBatch:
    return ImageBatch.from_images([torch.randn(3, *size, generator=rng) for size in sizes])


def variants(fast: list[str], slow: list[str]) -> list[Any]:
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)]


# One level alone has one more part here, a ResNet.
@pytest.mark.parametrize("variant", variants(["two_stage", "detr"], ["single_scale_resnet", "box_refine"]))
def test_compiled_model_trains_on_new_sizes_without_recompiling(variant: str, rng: torch.Generator):
    torch.compiler.reset()
    # In float64: compiled convolutions round differently, which flips some of a ResNet's ReLUs in float32.
    model = VARIANTS[variant].build().double().train()
    criterion = VARIANTS[variant].build_criterion()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for sizes in SIZES:
        batch = batch_of(sizes, rng)
        batch = ImageBatch(batch.images.double(), batch.padding_mask)
        targets = random_targets([2] * len(sizes), 5, rng)
        results: list[list[Tensor]] = []
        for call in (compiled, model):
            loss = criterion.total(criterion(call(*batch), targets))
            results.append([loss, *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2


# The others differ from these, and from what trains, in nothing that depends on the mode.
@pytest.mark.parametrize("variant", variants(["single_scale"], ["box_refine", "two_stage", "detr"]))
def test_compiled_model_detects_on_new_sizes_without_recompiling(variant: str, rng: torch.Generator):
    torch.compiler.reset()
    model = VARIANTS[variant].build().eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for sizes in SIZES:
            batch = batch_of(sizes, rng)
            torch.testing.assert_close(compiled(*batch), model(*batch), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_inductor_compiles_a_training_step(rng: torch.Generator):
    torch.compiler.reset()
    model = VARIANTS["two_stage"].build().train()
    criterion = VARIANTS["two_stage"].build_criterion()
    batch, targets = batch_of(SIZES[0], rng), random_targets([2, 1], 5, rng)
    losses = [
        criterion.total(criterion(call(*batch), targets)) for call in (torch.compile(model, fullgraph=True), model)
    ]
    torch.testing.assert_close(*losses)
    losses[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
