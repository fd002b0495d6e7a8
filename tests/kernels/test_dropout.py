"""Dropout by 16 random bits per number has the distribution of PyTorch's."""

import pytest
import torch
from torch import nn

from deformdetr.kernels import set_layer_kernels
from deformdetr.kernels._layers import apply_dropout


@pytest.fixture(autouse=True, params=[["dropout"], []], ids=["16 bits", "PyTorch's"])
def _kernels(request):
    with set_layer_kernels(request.param):
        yield


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_numbers_are_dropped_independently_with_the_probability(p, rng):
    x = torch.rand(300, 401, generator=rng) + 1
    out = apply_dropout(nn.Dropout(p), x)
    kept = out != 0
    torch.testing.assert_close(out[kept], x[kept] / (1 - p), rtol=1e-3, atol=0)
    # Six deviations of a binomial variable; neighbors, which share a random word, are both kept with (1 - p)^2.
    for share, expected in ((kept, 1 - p), (kept[:, 1:] & kept[:, :-1], (1 - p) ** 2)):
        deviation = (expected * (1 - expected) / share.numel()) ** 0.5
        assert share.double().mean().item() == pytest.approx(expected, abs=12 * deviation)


def test_the_mean_stays(rng):
    x = torch.ones(1000, 1000)
    assert apply_dropout(nn.Dropout(0.3), x).mean().item() == pytest.approx(1, abs=6 * (0.3 / 0.7) ** 0.5 / 1000)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0, 4), (2, 3, 4)], ids=str)
def test_any_shape(shape, rng):
    assert apply_dropout(nn.Dropout(0.5), torch.ones(shape)).shape == shape


def test_gradient_is_dropped_alike(rng):
    x = torch.ones(50, 7, requires_grad=True)
    out = apply_dropout(nn.Dropout(0.4), x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_nothing_is_dropped_in_evaluation_nor_without_a_probability(rng):
    x = torch.randn(5, 7, generator=rng)
    assert torch.equal(apply_dropout(nn.Dropout(0.5).eval(), x), x)
    assert torch.equal(apply_dropout(nn.Dropout(0.0), x), x)
    assert not apply_dropout(nn.Dropout(1.0), x).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_strides_stay(dtype, rng):
    x = torch.ones(6, 8, dtype=dtype).T
    out = apply_dropout(nn.Dropout(0.5), x)
    assert out.dtype == dtype
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


def test_draws_follow_from_the_global_seed(rng, seed):
    x, draws = torch.ones(20, 20), []
    for _ in range(2):
        torch.manual_seed(seed)
        draws.append(apply_dropout(nn.Dropout(0.5), x))
    assert torch.equal(*draws)
    assert not torch.equal(apply_dropout(nn.Dropout(0.5), x), draws[0])


def test_other_devices_have_pytorchs(rng):
    assert apply_dropout(nn.Dropout(0.5), torch.ones(3, device="meta")).is_meta


def test_the_default_device_of_the_process_changes_nothing():
    x = torch.ones(50, 7)
    with torch.device("meta"):
        out = apply_dropout(nn.Dropout(0.5), x)
    assert set(out.unique().tolist()) == {0, 2}


def test_hooks_of_a_dropout_layer_count(rng):
    layer = nn.Dropout(0.5)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    assert set(apply_dropout(layer, torch.ones(50, 7)).unique().tolist()) == {1, 3}


def test_another_module_can_stand_for_a_dropout_layer(rng):
    x = torch.randn(5, 7, generator=rng)
    assert apply_dropout(nn.Identity(), x) is x


def test_dropout_in_place_changes_its_input(rng):
    x = torch.ones(50, 7)
    assert apply_dropout(nn.Dropout(0.5, inplace=True), x) is x
    assert set(x.unique().tolist()) == {0, 2}


def test_vmap_asks_how_to_draw(rng):
    x, layer = torch.ones(8, 50), nn.Dropout(0.5)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda row: apply_dropout(layer, row))(x)
    out = torch.func.vmap(lambda row: apply_dropout(layer, row), randomness="different")(x)
    assert not torch.equal(out[0], out[1])
