"""The implementations of the operator: ours, PyTorch's own and, if installed, other packages."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Dtype, Levels
from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn

# The tensors that implementations take and compute gradients of.
SAMPLED = ("value", "sampling_locations", "attention_weights")
OFFSETS = ("value", "sampling_offsets", "attention_logits")
BASELINE = "grid_sample"

Function: TypeAlias = Callable[[Mapping[str, Tensor], Levels], Tensor]
"""Computes the operator from the tensors of `benchmarks.operator.draw`, by name, and the sizes of the levels."""


class Provider(NamedTuple):
    """An implementation, and what it can take.

    Attributes:
        load: Returns the function, or raises `ImportError`.
        form: Which of the inputs it takes and computes gradients of.
        dtypes: Dtypes of the value and the weights that it takes.
        keeps_graph: Whether one forward can have several backwards, which is how a backward is timed alone.
        mixes_dtypes: Whether it takes locations in float32 beside a value in half precision.
        half_sums: Whether it sums the gradient of a value in half precision in that dtype.
    """

    load: Callable[[], Function]
    form: tuple[str, ...] = SAMPLED
    dtypes: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
    keeps_graph: bool = True
    mixes_dtypes: bool = True
    half_sums: bool = False


def grid_sample_attention(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Levels,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Sample each level with PyTorch's `grid_sample`, as most projects do without the compiled extension."""
    batch, _, heads, channels = value.shape
    # In float32, as under autocast: locations in half precision would be off by pixels.
    pixels = [height * width for height, width in spatial_shapes]
    levels = torch.split(value.to(sampling_locations.dtype), pixels, dim=1)
    grids = 2 * sampling_locations - 1
    samples = []
    for index, (height, width) in enumerate(spatial_shapes):
        image = levels[index].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, index].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).flatten(3).flatten(0, 1).unsqueeze(1)
    summed = (torch.cat(samples, dim=-1) * weights).sum(-1)
    return summed.view(batch, heads * channels, -1).transpose(1, 2).to(value.dtype)


def _sampled(function: Callable[..., Tensor], **options: Any) -> Function:
    """Call a function that takes the value, the levels, locations and weights."""
    return lambda given, levels: function(
        given["value"], levels, given["sampling_locations"], given["attention_weights"], **options
    )


def _fused(function: Callable[..., Tensor]) -> Function:
    """Call a function that takes the value, the levels, reference points, offsets and logits."""
    names = ("reference_points", "sampling_offsets", "attention_logits")
    return lambda given, levels: function(given["value"], levels, *(given[name] for name in names))


def _from_level_tensors(function: Callable[..., Tensor]) -> Function:
    """Call a function that takes the levels, and then what the original's takes: shapes and first pixels as tensors."""
    made: dict[Levels, tuple[Tensor, Tensor]] = {}

    def call(given: Mapping[str, Tensor], levels: Levels) -> Tensor:
        if levels not in made:
            shapes = torch.tensor(levels, device=given["value"].device)
            made[levels] = shapes, shapes.prod(1).cumsum(0) - shapes.prod(1)
        sampled = given["sampling_locations"], given["attention_weights"]
        return function(levels, given["value"], *made[levels], *sampled)

    return call


def _in_half_sums(given: Mapping[str, Tensor], levels: Levels) -> Tensor:
    return _sampled(ms_deform_attn, grad_value_dtype=given["value"].dtype)(given, levels)


def _load_extension() -> Function:
    """Return the compiled extension of the original, which is imported by the name that its setup gives it."""
    extension: Any = importlib.import_module("MultiScaleDeformableAttention")

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            output: Tensor = extension.ms_deform_attn_forward(*inputs, len(inputs[0]))
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            gradients = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad_output, len(grad_output))
            return gradients[0], None, None, *gradients[1:]

    return _from_level_tensors(lambda levels, *given: Attention.apply(*given))


def _load_transformers() -> Function:
    """Return what transformers runs where it downloads no kernel: `grid_sample`, level by level."""
    module: Any = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    attention = module.MultiScaleDeformableAttention()
    return _from_level_tensors(
        lambda levels, value, shapes, *others: attention(value, shapes, list(levels), *others, len(value))
    )


def _compile(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _load_torch_ms_deform_attn() -> Function:
    function = importlib.import_module("torch_ms_deform_attn").ms_deform_attn
    return _from_level_tensors(lambda levels, *given: function(*given))


def _load_deformops(*, float32_sums: bool = False) -> Function:
    """Return what deformops chooses, or its Triton kernels by name, which sum the gradient of the value in float32."""
    registry: Any = importlib.import_module("deformops.registry")
    options = {"backend": registry.Backend.TRITON} if float32_sums else {}
    return _from_level_tensors(lambda levels, *given: registry.msda(*given, **options))


PROVIDERS: Mapping[str, Provider] = {
    "ours": Provider(lambda: _sampled(ms_deform_attn)),
    "ours_reference": Provider(lambda: _sampled(ms_deform_attn, backend="reference")),
    "ours_half_sums": Provider(lambda: _in_half_sums, dtypes=("float16", "bfloat16"), half_sums=True),
    "ours_compiled": Provider(lambda: _sampled(_compile(ms_deform_attn)), keeps_graph=False),
    "ours_fused": Provider(lambda: _fused(fused_ms_deform_attn), OFFSETS),
    "ours_fused_compiled": Provider(lambda: _fused(_compile(fused_ms_deform_attn)), OFFSETS, keeps_graph=False),
    "grid_sample": Provider(lambda: _sampled(grid_sample_attention)),
    "grid_sample_compiled": Provider(lambda: _sampled(_compile(grid_sample_attention)), keeps_graph=False),
    "transformers": Provider(_load_transformers, dtypes=("float32",)),
    "original_extension": Provider(_load_extension, dtypes=("float32",)),
    "deformops": Provider(_load_deformops, mixes_dtypes=False, half_sums=True),
    "deformops_float32_sums": Provider(
        partial(_load_deformops, float32_sums=True), dtypes=("float16", "bfloat16"), mixes_dtypes=False
    ),
    "torch_ms_deform_attn": Provider(_load_torch_ms_deform_attn, dtypes=("float32",)),
}
