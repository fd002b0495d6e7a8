"""Count the presets' parameters and multiply-adds, and compare them with the published numbers.

`python -m benchmarks.flops` counts, writes `benchmarks/results/flops.json` and, from it, the table of `docs/models.md`;
with `--table` it only writes the table. Nothing is computed: the tensors are PyTorch's meta tensors, which have shapes
and no data.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pages import RESULTS, ROOT, Report, markdown
from deformdetr import PRESETS
from deformdetr.config import DeformableDETRConfig, DETRConfig
from deformdetr.kernels import register_flop_formulas

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
SIZES = ((800, 1066), (800, 1200), (800, 1333))
WIDTHS = range(1056, 1145, 8)


def build(config: DETRConfig | DeformableDETRConfig) -> torch.nn.Module:
    """Build a model on the meta device."""
    with torch.device("meta"):
        return config.build()


def count_flops(
    model: torch.nn.Module, batch: int, height: int, width: int, *, backward: bool = False
) -> dict[str, int]:
    """Count the floating-point operations of a forward, and of its backward, by operator.

    Args:
        model: A model on the meta device.
        backward: Whether to count the gradients of all predictions by all trained parameters, too.
    """
    register_flop_formulas()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    images = torch.empty(batch, 3, height, width, device="meta")
    # The counter has no formula for the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.device("meta"):
        if backward:
            outputs = model.train()(images)
            layers = [outputs, *outputs.get("aux_outputs", ()), outputs.get("enc_outputs", {})]
            predictions = [layer[name] for layer in layers for name in ("pred_logits", "pred_boxes") if name in layer]
            torch.autograd.grad(sum(each.sum() for each in predictions), trained, allow_unused=True)
        else:
            # The counter follows gradients from module to module, of which there are none.
            model.eval().requires_grad_(False)
            model(images)
            for parameter in trained:
                parameter.requires_grad_()
    return {str(operator).split(".")[1]: int(n) for operator, n in counter.get_flop_counts()["Global"].items()}


def count(name: str, height: int, width: int) -> dict[str, int]:
    """Count a preset's parameters, and the multiply-adds of one image without padding.

    `sampling` is the operator of deformable attention: four multiply-adds for every sample and channel.
    `self_attention` is the products of the decoder's queries with keys, and of weights with values.
    """
    model = build(PRESETS[name])
    parameters = list(model.parameters())
    flops = count_flops(model, 1, height, width)
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


def matching_width(names: Sequence[str]) -> tuple[int, float]:
    """Return the width, at height 800, that fits the published numbers best, and the largest deviation from them."""

    def worst(width: int) -> float:
        return max(abs(count(name, 800, width)["total"] / 1e9 / PUBLISHED[name] - 1) for name in names)

    deviation, width = min((worst(width), width) for width in WIDTHS)
    return width, deviation


def measure() -> dict[str, Any]:
    """Count all presets at all sizes."""
    # Three published numbers differ; the original's table repeats the third for its variants.
    width, deviation = matching_width(list(PUBLISHED)[:3])
    sizes = sorted({*SIZES, (800, width)})
    return {
        "command": "python -m benchmarks.flops",
        "torch": torch.__version__.split("+")[0],
        "published_giga_multiply_adds": PUBLISHED,
        "best_match": {"height": 800, "width": width, "worst_relative_deviation": deviation},
        "counts": {name: {f"{h}x{w}": count(name, h, w) for h, w in sizes} for name in PUBLISHED},
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the table of the page, and what it shows."""
    counts, published, best = results["counts"], results["published_giga_multiply_adds"], results["best_match"]
    sizes = list(next(iter(counts.values())))
    heads = ["preset", "parameters", "trainable", *(f"{size} (G)".replace("x", " × ") for size in sizes)]
    rows = []
    for name, by_size in counts.items():
        first = by_size[sizes[0]]
        numbers = [f"{by_size[size]['total'] / 1e9:.1f}" for size in sizes]
        rows.append(
            [f"`{name}`", f"{first['parameters']:,}", f"{first['trainable']:,}", *numbers, str(published[name])]
        )
    multi_scale = counts["deformable_detr_r50"][f"800x{best['width']}"]
    sampling, attention = (multi_scale[part] / 1e9 for part in ("sampling", "self_attention"))
    note = (
        "Billions of multiply-adds for one image of the given height and width, counted by PyTorch "
        f"{results['torch']} with `{results['command']}`, which writes `benchmarks/results/flops.json`. The published "
        f"numbers do not state the size of the input, and no single width gives all of them: 800 × {best['width']} "
        f"fits best, within {best['worst_relative_deviation']:.1%} of the three distinct numbers. "
        f"At that size, `deformable_detr_r50` spends {sampling:.2f} G on the sampling of deformable attention and "
        f"{attention:.2f} G on the matrix products of the decoder's self-attention, too little to explain the "
        "differences. The published table has one number for all multi-scale variants; ours includes the heads of the "
        "two-stage model, which classify every pixel."
    )
    return f"{markdown([*heads, 'published (G)'], rows)}\n\n{note}"


REPORT = Report(RESULTS / "flops.json", lambda results: {ROOT / "docs" / "models.md": {"": table(results)}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the table, from the stored results")
    REPORT.update(None if parser.parse_args().table else measure())


if __name__ == "__main__":
    main()
