"""Count the presets' parameters and multiply-adds, and compare them with the published numbers.

`python -m benchmarks.flops` counts, and writes the table of `docs/models.md`. Nothing is computed: the tensors are
PyTorch's meta tensors, which have shapes and no data.
"""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import describe_source
from benchmarks.pages import DOCS, Parts, markdown, read, source, store, write
from deformdetr import PRESETS
from deformdetr.config import DeformableDETRConfig, DETRConfig
from deformdetr.kernels import register_flop_formulas

STORED = "flops.json"
# In 1e9 multiply-adds, by the README of the original implementation, which has those of DETR as well.
PUBLISHED = {
    "deformable_detr_r50_single_scale": 78,
    "deformable_detr_r50_single_scale_dc5": 128,
    "deformable_detr_r50": 173,
    "deformable_detr_r50_refine": 173,
    "deformable_detr_r50_two_stage": 173,
    "detr_r50": 86,
    "detr_r50_dc5": 187,
}
# Images are resized to a shorter side of 800 pixels and a longer one of at most 1333. Most of COCO's are 4:3 or 3:2.
# A width of 1104 fits the published numbers best.
HEIGHT, WIDTHS = 800, (1066, 1104, 1200, 1333)


def count_flops(
    config: DETRConfig | DeformableDETRConfig, height: int, width: int, *, backward: bool = False
) -> dict[str, int]:
    """Count the floating-point operations of a forward of one image by operator.

    Args:
        config: Of the model.
        backward: Whether to count the gradients of all predictions by all trained parameters, too.
    """
    register_flop_formulas()
    with torch.device("meta"):
        model = config.build().train(backward)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Without a backward, the counter follows gradients from module to module all the same.
        model.requires_grad_(backward)
        # The counter has no formula for the fused attention of CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            outputs = model(torch.empty(1, 3, height, width))
            if backward:
                layers = [outputs, *outputs.get("aux_outputs", ()), outputs.get("enc_outputs", {})]
                predicted = [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes") if name in layer]
                torch.autograd.grad(sum(each.sum() for each in predicted), trained, allow_unused=True)
    return {str(operator).split(".")[1]: int(n) for operator, n in counter.get_flop_counts()["Global"].items()}


def count(name: str, width: int, height: int = HEIGHT) -> dict[str, int]:
    """Count a preset's parameters, and the multiply-adds of one image without padding.

    `sampling` is the operator of deformable attention: four multiply-adds for every sample and channel.
    `self_attention` is the products of the decoder's queries with keys, and of weights with values.
    """
    with torch.device("meta"):
        parameters = list(PRESETS[name].build().parameters())
    flops = count_flops(PRESETS[name], height, width)
    parts = {
        "total": flops,
        "convolutions": ("convolution",),
        "sampling": ("ms_deform_attn",),
        "self_attention": ("bmm", "baddbmm"),
    }
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        # PyTorch counts a multiplication and an addition as two operations.
        **{part: sum(flops.get(operator, 0) for operator in operators) // 2 for part, operators in parts.items()},
    }


def measure() -> dict[str, Any]:
    """Count all presets at all widths."""
    return {
        **describe_source("python -m benchmarks.flops"),
        "published_giga_multiply_adds": PUBLISHED,
        "counts": {name: {f"{HEIGHT}x{width}": count(name, width) for width in WIDTHS} for name in PUBLISHED},
    }


def parts() -> Parts:
    """Return the table of the page."""
    results = read(STORED)
    counts = results["counts"]
    sizes = list(counts["deformable_detr_r50"])
    heads = ["preset", "parameters", "trainable", *(f"{size} (G)".replace("x", " × ") for size in sizes)]
    rows = []
    for name, published in results["published_giga_multiply_adds"].items():
        parameters = [f"{counts[name][sizes[0]][each]:,}" for each in ("parameters", "trainable")]
        numbers = [f"{counts[name][size]['total'] / 1e9:.1f}" for size in sizes]
        rows.append([f"`{name}`", *parameters, *numbers, str(published)])
    return {(DOCS / "models.md", ""): f"{markdown([*heads, 'published (G)'], rows)}\n\n{source(STORED)}"}


if __name__ == "__main__":
    store(STORED, measure())
    write(parts())
