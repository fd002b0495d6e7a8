"""The implementations of the operator: ours, PyTorch's own means, and others where they are installed."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Device, Dtype, Levels
from benchmarks.problems.contender import UnavailableError
from benchmarks.problems.operator_inputs import LOGITS, OFFSETS, SAMPLED, Form, Inputs, locate, weigh
from deformdetr import kernels
from deformdetr.kernels import _gather, ms_deform_attn
from deformdetr.kernels._levels import pack_shapes, place_levels


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An implementation, and what it can take.

    Attributes:
        load: Gives the function, or raises `UnavailableError` or `ImportError`.
        form: Which of the inputs it takes and is differentiated by.
        one_dtype: Whether locations have to be of the value's dtype.
    """

    name: str
    load: Callable[[], Callable[[Inputs], Tensor]]
    form: Form = SAMPLED
    devices: tuple[Device, ...] = ("cpu", "cuda")
    dtypes: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
    one_dtype: bool = False
    note: str = ""


def grid_sample_attention(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Levels,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Sample each level with PyTorch's `grid_sample`: the formulation that every project falls back on."""
    batch, _, heads, channels = value.shape
    # As under autocast: locations in half precision would be off by pixels.
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


def _sampled(inputs: Inputs) -> tuple[Any, ...]:
    return inputs.value, inputs.spatial_shapes, inputs.sampling_locations, inputs.attention_weights


def _from_offsets(inputs: Inputs) -> tuple[Any, ...]:
    return (
        inputs.value,
        inputs.spatial_shapes,
        inputs.reference_points,
        inputs.sampling_offsets,
        inputs.attention_logits,
    )


def _ours(inputs: Inputs) -> Tensor:
    return ms_deform_attn(*_sampled(inputs), backend="auto")


def _reference(inputs: Inputs) -> Tensor:
    return ms_deform_attn(*_sampled(inputs), backend="reference")


class _Gather(torch.autograd.Function):
    """What CPUs run where Numba cannot compile kernels."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.levels = place_levels(pack_shapes(levels), value.shape[1])
        return _gather.forward(value, ctx.levels, locations, weights)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        by_value, by_locations, by_weights = _gather.backward(
            grad_output, value, ctx.levels, locations, weights, (True, True, True)
        )
        return by_value, None, by_locations, by_weights


def _run_gather(inputs: Inputs) -> Tensor:
    out: Tensor = _Gather.apply(*_sampled(inputs))
    return out


def _fused() -> Callable[..., Tensor]:
    fused: Callable[..., Tensor] | None = getattr(kernels, "fused_ms_deform_attn", None)
    if fused is None:
        raise UnavailableError("this version of deformdetr.kernels has no fused_ms_deform_attn")
    return fused


def _load_fused() -> Callable[[Inputs], Tensor]:
    fused = _fused()
    return lambda inputs: fused(*_from_offsets(inputs))


def _load_from_offsets() -> Callable[[Inputs], Tensor]:
    # Of interest beside the fused operator alone.
    _fused()

    def call(inputs: Inputs) -> Tensor:
        locations = locate(inputs.reference_points, inputs.sampling_offsets.float(), inputs.spatial_shapes)
        weights = weigh(inputs.attention_logits.float()).to(inputs.value.dtype)
        return ms_deform_attn(inputs.value, inputs.spatial_shapes, locations, weights)

    return call


def _grid_sample(inputs: Inputs) -> Tensor:
    return grid_sample_attention(*_sampled(inputs))


def _compile(
    function: Callable[..., Tensor], arguments: Callable[[Inputs], tuple[Any, ...]]
) -> Callable[[Inputs], Tensor]:
    compiled = torch.compile(function, dynamic=False, fullgraph=True)
    is_compiled = False

    def call(inputs: Inputs) -> Tensor:
        nonlocal is_compiled
        # Buffers that the backward reuses would not outlive its first run.
        with nullcontext() if is_compiled else torch._functorch.config.patch(donated_buffer=False):
            is_compiled = True
            return compiled(*arguments(inputs))

    return call


def _load_original() -> Callable[[Inputs], Tensor]:
    extension = importlib.import_module("MultiScaleDeformableAttention")

    class Original(torch.autograd.Function):
        """The extension's two functions; they need contiguous tensors, and a batch that the step divides."""

        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            out: Tensor = extension.ms_deform_attn_forward(*tensors, tensors[0].shape[0])
            return out

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors
            by_value, by_locations, by_weights = extension.ms_deform_attn_backward(
                *tensors, grad_output.contiguous(), tensors[0].shape[0]
            )
            return by_value, None, None, by_locations, by_weights

    shapes = _Shapes()

    def call(inputs: Inputs) -> Tensor:
        out: Tensor = Original.apply(inputs.value, *shapes(inputs), inputs.sampling_locations, inputs.attention_weights)
        return out

    return call


def _msda_triton(function: str) -> ModuleType:
    """Import one of two packages that share a name, told apart by what they export."""
    module = importlib.import_module("msda_triton")
    if not hasattr(module, function):
        raise UnavailableError(
            f"the msda_triton that is installed is the other package of this name: it has no {function}"
        )
    return module


def _load_rziga() -> Callable[[Inputs], Tensor]:
    _msda_triton("multiscale_deformable_attention")
    # The exported function falls back on `grid_sample` without a word, whatever goes wrong; this one does not.
    function = importlib.import_module("msda_triton.frontend").triton_multiscale_deformable_attention
    shapes = _Shapes()

    def call(inputs: Inputs) -> Tensor:
        out: Tensor = function(
            inputs.value, shapes(inputs)[0], inputs.sampling_locations, inputs.attention_weights, "zeros", False
        )
        return out.flatten(2)

    return call


def _load_roulbac() -> Callable[[Inputs], Tensor]:
    function = _msda_triton("multi_scale_deformable_attention").multi_scale_deformable_attention
    shapes = _Shapes()

    def call(inputs: Inputs) -> Tensor:
        out: Tensor = function(inputs.value, *shapes(inputs), inputs.sampling_locations, inputs.attention_weights)
        return out

    return call


def _load_flash() -> Callable[[Inputs], Tensor]:
    function: Any = importlib.import_module("DCNv4.functions").FlashDeformAttnFunction
    shapes = _Shapes()

    def call(inputs: Inputs) -> Tensor:
        together = torch.cat([inputs.sampling_locations.flatten(3), inputs.attention_logits.flatten(3)], dim=-1)
        points = inputs.attention_logits.shape[-1]
        out: Tensor = function.apply(inputs.value, *shapes(inputs), together, inputs.value.shape[0], points)
        return out

    return call


class _Shapes:
    """Spatial shapes and the levels' first pixels, as others take them: on the device, and made once."""

    def __init__(self) -> None:
        self._made: tuple[Tensor, Tensor] | None = None

    def __call__(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        if self._made is None:
            shapes = torch.tensor(inputs.spatial_shapes, device=inputs.value.device)
            areas = shapes.prod(1)
            self._made = shapes, areas.cumsum(0) - areas
        return self._made


BASELINE = "grid_sample"
PROVIDERS = (
    Provider(name="ours", load=lambda: _ours),
    Provider(name="ours_reference", load=lambda: _reference),
    Provider(
        name="ours_gather",
        load=lambda: _run_gather,
        devices=("cpu",),
        note="what runs where Numba cannot compile kernels",
    ),
    Provider(name="ours_compiled", load=lambda: _compile(ms_deform_attn, _sampled)),
    Provider(name="ours_fused", load=_load_fused, form=OFFSETS),
    Provider(name="ours_fused_compiled", load=lambda: _compile(_fused(), _from_offsets), form=OFFSETS),
    Provider(
        name="ours_from_offsets",
        load=_load_from_offsets,
        form=OFFSETS,
        devices=("cuda",),
        note="with the softmax and the locations before it, each an operation",
    ),
    Provider(name="grid_sample", load=lambda: _grid_sample),
    Provider(name="grid_sample_compiled", load=lambda: _compile(grid_sample_attention, _sampled)),
    Provider(name="original_extension", load=_load_original, devices=("cuda",), dtypes=("float32",)),
    Provider(
        name="msda_triton_rziga",
        load=_load_rziga,
        devices=("cuda",),
        dtypes=("float32", "float16"),
        one_dtype=True,
        note="its kernel, without the fall-back around it",
    ),
    Provider(name="msda_triton_roulbac", load=_load_roulbac, devices=("cuda",), one_dtype=True),
    Provider(
        name="flash_deform_attn",
        load=_load_flash,
        form=LOGITS,
        devices=("cuda",),
        dtypes=("float16",),
        one_dtype=True,
        note="takes logits, and locations next to them in one tensor; the time includes joining the two",
    ),
)
