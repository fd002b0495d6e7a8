import math

import pytest
import torch

from deformdetr.nn import LearnedPositionEncoding, SinePositionEncoding, sine_features
from goldens import load_golden, unit
from pyramids import masks_of

PARTS = load_golden("parts").arrays
GOLDEN_MASK = torch.from_numpy(PARTS["position/mask"])


@pytest.mark.parametrize(
    ("key", "encoding"),
    [
        ("deformable_sine_64", SinePositionEncoding(128)),
        ("deformable_sine_128_T20", SinePositionEncoding(256, temperature=20.0)),
        ("sine_64_unnormalized", SinePositionEncoding(128, normalize=False)),
    ],
)
def test_sine_encoding_is_the_golden_one(key, encoding):
    torch.testing.assert_close(encoding(GOLDEN_MASK), torch.from_numpy(PARTS[f"position/{key}"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("offset", "normalize", "temperature"),
    [(-0.5, True, 10000.0), (0.0, True, 10000.0), (0.0, True, 20.0), (-0.5, False, 50.0)],
)
def test_sine_encoding_agrees_with_loops_over_valid_pixels(offset, normalize, temperature):
    d_model, valid = 12, [(5, 7), (3, 4)]
    encoding = SinePositionEncoding(d_model, temperature=temperature, normalize=normalize, offset=offset)
    encoded = encoding(masks_of([[size] for size in valid], [(5, 7)])[0])
    for image, (height, width) in enumerate(valid):
        for row in range(height):
            for column in range(width):
                y, x = float(row + 1), float(column + 1)
                if normalize:
                    y = (y + offset) / (height + 1e-6) * 2 * math.pi
                    x = (x + offset) / (width + 1e-6) * 2 * math.pi
                expected = []
                for place in (y, x):
                    for pair in range(d_model // 4):
                        angle = place / temperature ** (2 * pair / (d_model / 2))
                        expected += [math.sin(angle), math.cos(angle)]
                assert encoded[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_offset_of_deformable_detr_is_the_default_and_halves_a_pixel():
    mask = torch.zeros(1, 1, 8, dtype=torch.bool)
    ours, detrs = SinePositionEncoding(8)(mask), SinePositionEncoding(8, offset=0.0)(mask)
    center, edge = 0.5 / 8, 1 / 8
    assert ours[0, 4, 0, 0].item() == pytest.approx(math.sin(2 * math.pi * center), abs=1e-5)
    assert detrs[0, 4, 0, 0].item() == pytest.approx(math.sin(2 * math.pi * edge), abs=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_padding_does_not_move_valid_pixels(normalize):
    encoding = SinePositionEncoding(16, normalize=normalize)
    padded = encoding(masks_of([[(6, 9)], [(4, 5)]], [(6, 9)])[0])
    alone = encoding(torch.zeros(1, 4, 5, dtype=torch.bool))
    torch.testing.assert_close(padded[1:, :, :4, :5], alone)


def test_fully_padded_rows_and_columns_stay_finite():
    assert SinePositionEncoding(16)(torch.ones(1, 3, 4, dtype=torch.bool)).isfinite().all()


def test_sine_encoding_stays_in_float32_in_half_precision():
    encoding = SinePositionEncoding(64)
    expected = encoding(GOLDEN_MASK)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoding(GOLDEN_MASK), expected)
    assert torch.equal(encoding.bfloat16()(GOLDEN_MASK), expected)
    assert expected.dtype == torch.float32


@pytest.mark.parametrize("d_model", [6, 2, 0, -4])
def test_sine_encoding_refuses_channels_that_do_not_split_in_four(d_model):
    with pytest.raises(ValueError, match=f"d_model must be a positive multiple of 4, got {d_model}"):
        SinePositionEncoding(d_model)


@pytest.mark.parametrize("temperature", [0.0, -10000.0])
def test_sine_encoding_refuses_temperatures_that_are_not_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
        SinePositionEncoding(8, temperature=temperature)


def test_printed_sine_encoding_names_its_settings():
    printed = repr(SinePositionEncoding(8, temperature=20.0, offset=0.0))
    assert "d_model=8, temperature=20.0, normalize=True, offset=0.0" in printed


def test_sine_features_interleave_sines_and_cosines(rng):
    positions = torch.rand(2, 3, generator=rng, dtype=torch.float64) * 6
    features = sine_features(positions, 6, 100.0)
    for pair in range(3):
        angles = positions / 100 ** (2 * pair / 6)
        torch.testing.assert_close(features[..., 2 * pair], angles.sin())
        torch.testing.assert_close(features[..., 2 * pair + 1], angles.cos())
    assert features.dtype == torch.float64


def test_sine_features_of_golden_boxes():
    boxes = unit("transformer.proposals", (1, 5, 4)).float().sigmoid() * (2 * math.pi)
    expected = torch.from_numpy(PARTS["transformer/proposal_embedding"])
    torch.testing.assert_close(sine_features(boxes, 128).flatten(-2), expected, rtol=0, atol=1e-5)


def test_learned_encoding_joins_the_vectors_of_column_and_row():
    encoding = LearnedPositionEncoding(6, max_size=9)
    encoded = encoding(torch.zeros(2, 4, 7, dtype=torch.bool))
    assert encoded.shape == (2, 6, 4, 7)
    for row in range(4):
        for column in range(7):
            expected = torch.cat([encoding.col_embed.weight[column], encoding.row_embed.weight[row]])
            assert torch.equal(encoded[1, :, row, column], expected)


def test_learned_encoding_does_not_depend_on_padding(rng):
    encoding = LearnedPositionEncoding(6)
    mask = torch.rand(1, 4, 7, generator=rng) < 0.5
    assert torch.equal(encoding(mask), encoding(torch.zeros_like(mask)))


def test_learned_encoding_starts_uniform_between_zero_and_one():
    weights = torch.cat([parameter.flatten() for parameter in LearnedPositionEncoding(256).parameters()])
    assert weights.numel() == 2 * 50 * 128
    assert 0 <= weights.min() < 0.01
    assert 0.99 < weights.max() <= 1
    assert weights.mean().item() == pytest.approx(0.5, abs=0.02)


def test_learned_encoding_trains_the_rows_and_columns_that_it_used():
    encoding = LearnedPositionEncoding(6, max_size=9)
    encoding(torch.zeros(2, 4, 7, dtype=torch.bool)).sum().backward()
    assert encoding.row_embed.weight.grad[:, 0].tolist() == [14] * 4 + [0] * 5
    assert encoding.col_embed.weight.grad[:, 0].tolist() == [8] * 7 + [0] * 2


@pytest.mark.parametrize("size", [(3, 51), (51, 3)])
def test_learned_encoding_refuses_larger_maps_than_it_knows(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} is larger than max_size \(50\)"):
        LearnedPositionEncoding(8)(torch.zeros(1, *size, dtype=torch.bool))


@pytest.mark.parametrize("d_model", [7, 0, -2])
def test_learned_encoding_refuses_channels_that_do_not_split_in_two(d_model):
    with pytest.raises(ValueError, match=f"d_model must be positive and even, got {d_model}"):
        LearnedPositionEncoding(d_model)
