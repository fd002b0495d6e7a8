import pytest
import torch

from dat_names import assert_golden, golden_layer
from deformdetr.nn._window_attention import WindowAttention
from goldens import unit
from random_weights import redrawn


def _layer(rng, window_size, shift):
    return redrawn(WindowAttention(8, 2, window_size=window_size, shift=shift), rng, std=1)


@pytest.mark.parametrize(("name", "shift"), [("window", 0), ("shifted", 2)])
def test_output_and_gradients_in_float64_are_those_of_the_original(name, shift):
    tag = f"dat.{name}"
    layer = golden_layer(WindowAttention(16, 4, window_size=3, shift=shift), tag, is_window=True)
    x = unit(f"{tag}.input", (2, 16, 6, 9)).requires_grad_()
    assert_golden(layer, tag, x, is_window=True)


def _windows(size, window_size, shift):
    """Return the window of every pixel along an axis: those that a shift moves to the end are apart."""
    pixels = torch.arange(size)
    padded = size + -size % window_size
    return torch.div((pixels - shift) % padded, window_size, rounding_mode="floor") + 1000 * (pixels < shift)


@pytest.mark.parametrize("size", [(6, 9), (5, 7), (2, 8), (1, 1)])
@pytest.mark.parametrize(("window_size", "shift"), [(3, 0), (3, 2), (4, 2)])
def test_pixels_attend_to_those_of_their_window_and_not_to_padding(rng, size, window_size, shift):
    layer, x = _layer(rng, window_size, shift).double(), torch.randn(2, 8, *size, generator=rng).double()
    query, key, value = layer.qkv_proj(x.flatten(2).mT).view(2, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    rows, columns = (_windows(each, window_size, shift) for each in size)
    window = (10_000 * rows[:, None] + columns).flatten()
    y, rest = torch.arange(size[0] * size[1]) // size[1], torch.arange(size[0] * size[1]) % size[1]
    # Pixels of a window are at most its size apart; of others, the distance does not matter.
    reach = window_size - 1
    down = (y[:, None] - y).clamp(-reach, reach) + reach
    across = (rest[:, None] - rest).clamp(-reach, reach) + reach
    logits = query @ key.mT / 2 + layer.position_bias[:, down, across]
    weights = logits.masked_fill(window[:, None] != window, -torch.inf).softmax(-1)
    expected = layer.output_proj((weights @ value).transpose(1, 2).flatten(2)).mT.view_as(x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ((8, 3), {}, r"d_model \(8\) must be divisible by n_heads \(3\)"),
        ((8, 2), {"window_size": 0}, "must be positive, got 8, 2 and 0"),
        ((8, 2), {"shift": 4}, r"shift must lie in 0\.\.3, got 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sizes, settings, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(*sizes, **({"window_size": 4} | settings))


def test_printed_layer_names_its_settings():
    assert "n_heads=2, window_size=4, shift=1" in repr(WindowAttention(8, 2, window_size=4, shift=1))


@pytest.mark.slow
@pytest.mark.compile
def test_exported_layer_serves_other_sizes(rng):
    layer = _layer(rng, 3, 2)
    # With a single window in a line, but not on the whole map.
    first = torch.randn(2, 8, 2, 8, generator=rng)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(layer, (first,), dynamic_shapes=(sizes,), strict=True).module()
    for x in (first, torch.randn(3, 8, 6, 10, generator=rng), torch.randn(1, 8, 7, 3, generator=rng)):
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-5)
