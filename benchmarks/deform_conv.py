"""Time torchvision's deformable convolution on a GPU beside one by this library's operator of attention.

Which of them `DeformConv2d` should call on GPUs is not known before. `python -m benchmarks.measure_gpu` runs it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.cases import Device
from benchmarks.measure import DeviceClock, WallClock, interleave
from benchmarks.problem import TOLERANCES, largest_error
from deformdetr.kernels import ms_deform_attn

KERNEL = 3
ROUNDS = 10
# (images, channels, height, width) of the 3x3 convolutions in the last three stages of ResNet-50, at 800 x 1333 pixels.
SIZES = ((2, 128, 100, 167), (2, 256, 50, 84), (2, 512, 25, 42))


def by_torchvision(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Run version 2 with stride 1 and a padding of 1."""
    out: Tensor = torchvision.ops.deform_conv2d(x, offset, weight, mask=mask, padding=KERNEL // 2)
    return out


def by_operator(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Run the same: every tap of every pixel is a query with one point, and one product follows."""
    batch, channels, height, width = x.shape
    pixels, taps = height * width, KERNEL**2
    y, x_center = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5 for size in (height, width))
    step = torch.arange(KERNEL, device=x.device, dtype=x.dtype) - KERNEL // 2
    # (taps, pixels): where every tap lies before its offset.
    rows = (step[:, None, None, None] + y[:, None]).expand(KERNEL, KERNEL, height, width).reshape(taps, pixels)
    columns = (step[:, None, None] + x_center).expand(KERNEL, KERNEL, height, width).reshape(taps, pixels)
    moves = offset.view(batch, -1, taps, 2, pixels)
    places = torch.stack([(columns + moves[:, :, :, 1]) / width, (rows + moves[:, :, :, 0]) / height], dim=-1)
    locations = places.permute(0, 3, 2, 1, 4).flatten(1, 2)[:, :, :, None, None]
    weights = mask.view(batch, -1, taps, pixels).permute(0, 3, 2, 1).flatten(1, 2)[:, :, :, None, None]
    groups = locations.shape[2]
    value = x.flatten(2).transpose(1, 2).reshape(batch, pixels, groups, channels // groups)
    sampled = ms_deform_attn(value, [(height, width)], locations, weights).view(batch, pixels, taps * channels)
    out = sampled @ weight.permute(2, 3, 1, 0).reshape(taps * channels, -1)
    return out.transpose(1, 2).reshape(batch, -1, height, width)


FORMS: Mapping[str, Callable[..., Tensor]] = {"torchvision": by_torchvision, "operator": by_operator}


def measure(device: Device, sizes: tuple[tuple[int, int, int, int], ...] = SIZES) -> Iterator[dict[str, Any]]:
    """Yield the times of both forms for every size and direction, once they are measured and equal.

    Raises:
        RuntimeError: If a form is further from torchvision's result in float64 than the tolerance.
    """
    for each in sizes:
        inputs = _draw(each, device)
        exact = _run(by_torchvision, [tensor.double() for tensor in inputs])
        for name, form in FORMS.items():
            if (error := largest_error(_run(form, inputs), exact)) > TOLERANCES["float32"]:
                raise RuntimeError(f"{name} differs from float64 by {error:.2g} at {each}")
        for direction, run in (("forward", _forward), ("forward and backward", _run)):
            calls = {name: partial(run, form, inputs) for name, form in FORMS.items()}
            clocks = {name: DeviceClock(call) if device == "cuda" else WallClock(call) for name, call in calls.items()}
            rounds = dict.fromkeys(clocks, ROUNDS if device == "cuda" else 1)
            taken = interleave({name: clock.sample for name, clock in clocks.items()}, rounds)
            times = {f"{name}, microseconds": min(samples) * 1e6 for name, samples in taken.items()}
            yield {"sizes": " x ".join(map(str, each)), "direction": direction, **times}


def _draw(sizes: tuple[int, int, int, int], device: Device) -> list[Tensor]:
    batch, channels, height, width = sizes
    taps = KERNEL**2
    x = torch.randn(sizes, device=device)
    offset = torch.randn(batch, 2 * taps, height, width, device=device)
    mask = torch.rand(batch, taps, height, width, device=device)
    weight = torch.randn(channels, channels, KERNEL, KERNEL, device=device) / (channels * taps) ** 0.5
    return [x, offset, mask, weight]


def _forward(form: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return form(*inputs)


def _run(form: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return output and gradients of the sum of its squares."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = form(*leaves)
    grads = torch.autograd.grad(out, leaves, out.detach())
    return dict(zip(("out", "x", "offset", "mask", "weight"), (out.detach(), *grads), strict=True))
