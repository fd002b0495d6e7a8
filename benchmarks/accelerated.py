"""Whole models of transformers, before and after they are accelerated."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Direction, ModelSizes
from benchmarks.problem import Contender, Outputs, Problem
from deformdetr.integrations.transformers import accelerate

BASELINE = "transformers"
# Of whole models, as in `benchmarks.model`: of predictions, and of gradients.
_TOLERANCES: Mapping[Direction, float] = {"forward": 1e-3, "forward_backward": 0.1}
_ANY_SIZE = {"anchor_image_size": None, "num_denoising": 0}
# Configs, which set no more than is needed for random weights and images of any size.
CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DeformableDetrForObjectDetection": ("DeformableDetrConfig", {}),
    "Mask2FormerForUniversalSegmentation": ("Mask2FormerConfig", {}),
    "RTDetrForObjectDetection": ("RTDetrConfig", _ANY_SIZE),
    "DFineForObjectDetection": ("DFineConfig", _ANY_SIZE),
}


def build(name: str) -> nn.Module:
    """Build a model of transformers with random weights."""
    import transformers

    config, options = CONFIGS[name]
    if config == "DeformableDetrConfig":
        options = {"backbone_config": transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])}
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
    return model


def prepare_accelerated(
    sizes: ModelSizes, direction: Direction, device: str, seed: int, build: Callable[[str], nn.Module] = build
) -> Problem:
    """Build a model; its predictions, or its gradients, are compared with those that it had before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(sizes.preset).to(device).eval()
        images = torch.randn(1, 3, sizes.height, sizes.width).to(device)
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name:
                # As initialized, they are whole pixels, where gradients jump.
                parameter.data += 0.1 * torch.randn_like(parameter)

    def results(context: Callable[[], AbstractContextManager[Any]]) -> Outputs:
        with context(), torch.set_grad_enabled(direction != "forward"):
            found = {name: value for name, value in model(images).items() if isinstance(value, Tensor)}
            if direction == "forward":
                # Sorted, because rounding may swap queries of similar scores.
                return {name: value.sort(dim=1).values for name, value in found.items() if value.ndim > 1}
            loss = sum(value.clamp(-1e3, 1e3).mean() for value in found.values() if value.requires_grad)
            trained = [each for each in model.parameters() if each.requires_grad]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        # Of matrices, together: gradients of biases before a norm or a softmax are 0 but for rounding.
        return {"gradients": torch.cat([each.flatten() for each in gradients if each is not None and each.ndim > 1])}

    contexts = {"ours": partial(accelerate, model), BASELINE: nullcontext}
    calls = {name: partial(results, context) for name, context in contexts.items()}
    right = cache(calls[BASELINE])
    candidates = {name: partial(Contender, call, call, right) for name, call in calls.items()}
    return Problem(candidates, BASELINE, _TOLERANCES[direction], clock="processor")
