"""Blocks with folded norms compute what torchvision's do."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d as TorchvisionsFrozenBatchNorm2d

from deformdetr.nn._residual import FrozenBatchNorm2d, ResidualBlock, convolve_and_normalize


def fill(module: nn.Module, rng: torch.Generator) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)


def random_norm(channels: int, rng: torch.Generator) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels)
    fill(norm, rng)
    return norm


def test_frozen_norm_is_torchvisions(rng):
    norm, theirs = random_norm(6, rng), TorchvisionsFrozenBatchNorm2d(6)
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(2, 6, 3, 5, generator=rng)
    torch.testing.assert_close(norm(x), theirs(x))
    assert list(norm.parameters()) == []
    assert repr(norm) == repr(theirs)


def test_frozen_norm_loads_the_state_of_a_trained_one(rng):
    trained, norm = nn.BatchNorm2d(6).eval(), FrozenBatchNorm2d(6)
    fill(trained, rng)
    norm.load_state_dict(trained.state_dict())
    x = torch.randn(2, 6, 3, 5, generator=rng)
    torch.testing.assert_close(norm(x), trained(x))


def torchvisions_block(kind: type[nn.Module], stride: int) -> nn.Module:
    d_out = 8 * kind.expansion
    downsample = None
    if stride > 1:
        downsample = nn.Sequential(nn.Conv2d(d_out, d_out, 1, stride, bias=False), FrozenBatchNorm2d(d_out))
    return kind(d_out, 8, stride, downsample, norm_layer=FrozenBatchNorm2d)


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_has_outputs_gradients_and_names_of_torchvisions(kind, stride, rng):
    theirs = torchvisions_block(kind, stride)
    fill(theirs, rng)
    nn.init.normal_(theirs.conv1.weight, std=0.1)
    names = list(theirs.state_dict())
    x = torch.randn(2, 8 * kind.expansion, 7, 6, generator=rng).contiguous(memory_format=torch.channels_last)
    results = []
    for block in (theirs, ResidualBlock(theirs)):
        block.zero_grad()
        tensor = x.clone().requires_grad_()
        out = block(tensor)
        out.sin().sum().backward()
        results.append([out.detach(), tensor.grad, *(parameter.grad for parameter in block.parameters())])
    scale = results[0][0].abs().max()
    torch.testing.assert_close(results[1][0] / scale, results[0][0] / scale)
    for mine, other in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine / other.norm(), other / other.norm(), rtol=1e-3, atol=1e-4)
    assert list(ResidualBlock(theirs).state_dict()) == names


class Adapted(nn.Conv2d):
    """A layer of someone else, which is more than its kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (Adapted(3, 8, 3, bias=False), FrozenBatchNorm2d(8)),
        (nn.Conv2d(3, 8, 3, bias=True), FrozenBatchNorm2d(8)),
        (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
        (nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(2, 8)),
    ],
    ids=["adapted", "bias", "batch norm", "group norm"],
)
def test_what_cannot_be_folded_is_called(conv, norm, rng):
    fill(norm, rng)
    x = torch.randn(2, 3, 6, 5, generator=rng)
    torch.testing.assert_close(convolve_and_normalize(x, conv, norm.eval()), norm(conv(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_stays(dtype, rng):
    conv, norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False).to(dtype), random_norm(8, rng).to(dtype)
    out = convolve_and_normalize(torch.randn(2, 3, 6, 5, generator=rng).to(dtype), conv, norm)
    assert out.dtype == dtype
    assert out.shape == (2, 8, 3, 3)


def hook_convolution(conv: nn.Conv2d, norm: nn.Module) -> None:
    conv.register_forward_hook(lambda module, inputs, output: 2 * output)


def hook_norm(conv: nn.Conv2d, norm: nn.Module) -> None:
    norm.register_forward_hook(lambda module, inputs, output: 2 * output)


def prune_convolution(conv: nn.Conv2d, norm: nn.Module) -> None:
    mask = torch.zeros_like(conv.weight)
    mask[:, ::2] = 1
    prune.custom_from_mask(conv, "weight", mask)


@pytest.mark.parametrize("change", [hook_convolution, hook_norm, prune_convolution])
def test_changes_of_convolution_and_norm_count(change, rng):
    conv, norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), FrozenBatchNorm2d(6)
    x = torch.randn(2, 4, 7, 5, generator=rng)
    plain = convolve_and_normalize(x, conv, norm)
    change(conv, norm)
    changed = convolve_and_normalize(x, conv, norm)
    torch.testing.assert_close(changed, norm(conv(x)))
    assert not torch.allclose(changed, plain)


@pytest.mark.parametrize("settings", [{"padding_mode": "reflect"}, {"padding": "same"}], ids=str)
def test_convolutions_of_other_borders_are_called(settings, rng):
    conv, norm = nn.Conv2d(4, 6, 3, bias=False, **({"padding": 1} | settings)), random_norm(6, rng)
    x = torch.randn(2, 4, 7, 5, generator=rng)
    torch.testing.assert_close(convolve_and_normalize(x, conv, norm), norm(conv(x)))


def test_frozen_norm_loads_the_state_of_a_trained_one_when_copied_or_pickled(rng):
    trained, norm = nn.BatchNorm2d(6).eval(), FrozenBatchNorm2d(6)
    fill(trained, rng)
    for each in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        each.load_state_dict(trained.state_dict())
        assert torch.equal(each.running_mean, trained.running_mean)
