"""The implementations of the operator: ours, PyTorch's own and, if installed, other packages."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Device, Dtype, Levels
from benchmarks.problems.operator_inputs import LOGITS, OFFSETS, SAMPLED, Form, Inputs, locate, weigh
from benchmarks.problems.problem import UnavailableError
from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn

Function: TypeAlias = Callable[[Inputs], Tensor]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An implementation, and what it can take.

    Attributes:
        load: Returns the function, or raises `UnavailableError` or `ImportError`.
        form: Which of the inputs it takes and computes gradients of.
        one_dtype: Whether locations must have the dtype of the value.
        keeps_graph: Whether one forward can have several backwards, which is how a backward is timed alone.
    """

    name: str
    load: Callable[[], Function]
    form: Form = SAMPLED
    devices: tuple[Device, ...] = ("cpu", "cuda")
    dtypes: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
    one_dtype: bool = False
    keeps_graph: bool = True
    note: str = ""


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


def _from_samples(function: Callable[..., Tensor], **options: Any) -> Function:
    return lambda inputs: function(
        inputs.value, inputs.spatial_shapes, inputs.sampling_locations, inputs.attention_weights, **options
    )


def _from_offsets(function: Callable[..., Tensor]) -> Function:
    return lambda inputs: function(
        inputs.value,
        inputs.spatial_shapes,
        inputs.reference_points,
        inputs.sampling_offsets,
        inputs.attention_logits,
    )


def _from_level_tensors(function: Callable[..., Tensor]) -> Function:
    """Call a function that takes shapes and first pixels of the levels as tensors, as the original's does."""
    return lambda inputs: function(
        inputs.value, *inputs.level_tensors, inputs.sampling_locations, inputs.attention_weights
    )


def _compile(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _from_separate_steps(inputs: Inputs) -> Tensor:
    locations = locate(inputs.reference_points, inputs.sampling_offsets.float(), inputs.spatial_shapes)
    weights = weigh(inputs.attention_logits.float()).to(inputs.value.dtype)
    return ms_deform_attn(inputs.value, inputs.spatial_shapes, locations, weights)


def _find(module: str, name: str) -> Callable[..., Any]:
    """Import a function from a package; two packages share the name `msda_triton`."""
    found = importlib.import_module(module)
    if not hasattr(found, name):
        raise UnavailableError(f"the {module} that is installed has no {name}: it is another package of this name")
    function: Callable[..., Any] = getattr(found, name)
    return function


def _load_original() -> Function:
    extension = importlib.import_module("MultiScaleDeformableAttention")

    class Original(torch.autograd.Function):
        """The extension's two functions, with a step that divides the batch, as they require."""

        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Any:
            ctx.save_for_backward(*tensors)
            return extension.ms_deform_attn_forward(*tensors, tensors[0].shape[0])

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors
            by_value, by_locations, by_weights = extension.ms_deform_attn_backward(
                *tensors, grad_output.contiguous(), tensors[0].shape[0]
            )
            return by_value, None, None, by_locations, by_weights

    return _from_level_tensors(Original.apply)


def _load_rziga() -> Function:
    _find("msda_triton", "multiscale_deformable_attention")
    # The exported function silently falls back on `grid_sample` after any error; this one does not.
    function = _find("msda_triton.frontend", "triton_multiscale_deformable_attention")
    return lambda inputs: function(
        inputs.value, inputs.level_tensors[0], inputs.sampling_locations, inputs.attention_weights, "zeros", False
    ).flatten(2)


def _load_flash() -> Function:
    function: Any = _find("DCNv4.functions", "FlashDeformAttnFunction")

    def call(inputs: Inputs) -> Tensor:
        joined = torch.cat([inputs.sampling_locations.flatten(3), inputs.attention_logits.flatten(3)], dim=-1)
        points = inputs.attention_logits.shape[-1]
        out: Tensor = function.apply(inputs.value, *inputs.level_tensors, joined, inputs.value.shape[0], points)
        return out

    return call


def _from_package(module: str, name: str) -> Callable[[], Function]:
    return lambda: _from_level_tensors(_find(module, name))


BASELINE = "grid_sample"
PROVIDERS = (
    Provider(name="ours", load=partial(_from_samples, ms_deform_attn)),
    Provider(name="ours_reference", load=partial(_from_samples, ms_deform_attn, backend="reference")),
    Provider(name="ours_compiled", load=lambda: _from_samples(_compile(ms_deform_attn)), keeps_graph=False),
    Provider(name="ours_fused", load=partial(_from_offsets, fused_ms_deform_attn), form=OFFSETS),
    Provider(
        name="ours_fused_compiled",
        load=lambda: _from_offsets(_compile(fused_ms_deform_attn)),
        form=OFFSETS,
        keeps_graph=False,
    ),
    Provider(
        name="ours_from_offsets",
        load=lambda: _from_separate_steps,
        form=OFFSETS,
        devices=("cuda",),
        note="computes locations and softmax before, as operations of their own",
    ),
    Provider(name="grid_sample", load=partial(_from_samples, grid_sample_attention)),
    Provider(
        name="grid_sample_compiled", load=lambda: _from_samples(_compile(grid_sample_attention)), keeps_graph=False
    ),
    Provider(name="deformops", load=_from_package("deformops.registry", "msda")),
    Provider(name="torch_ms_deform_attn", load=_from_package("torch_ms_deform_attn", "ms_deform_attn"), one_dtype=True),
    Provider(name="original_extension", load=_load_original, devices=("cuda",), dtypes=("float32",)),
    Provider(
        name="msda_triton_rziga",
        load=_load_rziga,
        devices=("cuda",),
        dtypes=("float32", "float16"),
        one_dtype=True,
        note="its kernel, without the fallback around it",
    ),
    Provider(
        name="msda_triton_roulbac",
        load=_from_package("msda_triton", "multi_scale_deformable_attention"),
        devices=("cuda",),
        one_dtype=True,
    ),
    Provider(
        name="flash_deform_attn",
        load=_load_flash,
        form=LOGITS,
        devices=("cuda",),
        dtypes=("float16",),
        one_dtype=True,
        note="takes logits, joined with locations in one tensor; the time includes joining them",
    ),
)
