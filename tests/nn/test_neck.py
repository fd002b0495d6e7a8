import pytest
import torch
import torch.nn.functional as F

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import ChannelMapper
from random_weights import redrawn

SIZES = [(11, 14), (6, 7), (3, 4)]
CHANNELS = (12, 20, 28)


def _features(rng, channels=CHANNELS, sizes=SIZES):
    return [
        torch.randn(2, width, *size, generator=rng)
        for width, size in zip(channels, sizes[-len(channels) :], strict=True)
    ]


def _apply(level, x, **convolution):
    x = F.conv2d(x, level.conv.weight, level.conv.bias, **convolution)
    return F.group_norm(x, 4, level.norm.weight, level.norm.bias)


def test_every_level_is_a_convolution_and_a_group_norm(rng):
    neck = redrawn(ChannelMapper(CHANNELS, 16, n_levels=5, norm_groups=4), rng)
    features = _features(rng)
    levels = neck(features)
    for index, feature in enumerate(features):
        torch.testing.assert_close(levels[index], _apply(neck.levels[index], feature))
    # The fourth comes from the raw feature, the fifth from the fourth.
    torch.testing.assert_close(levels[3], _apply(neck.levels[3], features[-1], stride=2, padding=1))
    torch.testing.assert_close(levels[4], _apply(neck.levels[4], levels[3], stride=2, padding=1))


@pytest.mark.parametrize("n_features", [1, 2, 3])
@pytest.mark.parametrize("n_levels", [1, 2, 3, 4, 6])
def test_any_number_of_levels_halves_sizes_rounding_up(rng, n_features, n_levels):
    channels = CHANNELS[-n_features:]
    if n_features > n_levels:
        with pytest.raises(ValueError, match=rf"between 1 and n_levels \({n_levels}\) .* got {n_features}"):
            ChannelMapper(channels, 16, n_levels=n_levels, norm_groups=4)
        return
    levels = ChannelMapper(channels, 16, n_levels=n_levels, norm_groups=4)(_features(rng, channels))
    expected = SIZES[-n_features:]
    while len(expected) < n_levels:
        height, width = expected[-1]
        expected = [*expected, ((height + 1) // 2, (width + 1) // 2)]
    assert [tuple(level.shape) for level in levels] == [(2, 16, *size) for size in expected]


def test_weights_are_xavier_and_biases_zero():
    neck = ChannelMapper((512, 1024, 2048), 256, n_levels=5)
    shapes = [(512, 1), (1024, 1), (2048, 1), (2048, 3), (256, 3)]
    assert len(neck.levels) == len(shapes)
    for level, (channels, kernel) in zip(neck.levels, shapes, strict=True):
        assert level.conv.weight.shape == (256, channels, kernel, kernel)
        assert fills_uniform_bound(level.conv.weight, xavier_bound(channels * kernel**2, 256 * kernel**2))
        assert not level.conv.bias.any()
        assert level.norm.num_groups == 32


def test_no_features_are_refused():
    with pytest.raises(ValueError, match=r"between 1 and n_levels \(4\) .* got 0"):
        ChannelMapper([], 16)


def test_channels_that_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"d_model \(48\) must be divisible by norm_groups \(32\)"):
        ChannelMapper(CHANNELS, 48)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_features_is_refused(rng, count):
    neck = ChannelMapper(CHANNELS, 16, norm_groups=4)
    features = (_features(rng) * 2)[:count]
    with pytest.raises(ValueError, match=rf"expected 3 features .* got {count}"):
        neck(features)


@pytest.mark.parametrize("n_levels", [1, 2, 3])
def test_a_level_of_one_value_per_group_does_not_depend_on_the_batch(rng, n_levels):
    neck = redrawn(ChannelMapper([6], 8, n_levels=n_levels, norm_groups=8), rng)
    features = torch.randn(2, 6, 1, 1, generator=rng)
    together = neck([features])
    for level, both in zip(neck([features[:1]]), together, strict=True):
        torch.testing.assert_close(level, both[:1], atol=1e-3, rtol=1e-3)
    neck([features[:1]])[-1].sum().backward()
    assert neck.levels[-1].norm.bias.grad.eq(1).all()
