"""The mask head: values against plain loops in float64, sizes and errors."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deformdetr.nn import AttentionMaps, MaskHead, _mask_head


def naive_maps(maps: AttentionMaps, query: Tensor, memory: Tensor, padding: Tensor | None) -> Tensor:
    """Compute attention maps one query and one head at a time."""
    batch, queries, d_model = query.shape
    _, _, height, width = memory.shape
    heads, share = maps.n_heads, d_model // maps.n_heads
    out = torch.zeros(batch, queries, heads, height, width, dtype=query.dtype)
    for b in range(batch):
        for q in range(queries):
            scores = torch.full((heads, height, width), -torch.inf, dtype=query.dtype)
            asked = maps.query_proj.weight @ query[b, q] + maps.query_proj.bias
            for y in range(height):
                for x in range(width):
                    if padding is None or not padding[b, y, x]:
                        key = maps.key_proj.weight @ memory[b, :, y, x] + maps.key_proj.bias
                        for m in range(heads):
                            part = slice(m * share, (m + 1) * share)
                            scores[m, y, x] = asked[part] @ key[part] / share**0.5
            out[b, q] = scores.exp() / scores.exp().sum()
    return out


def naive_masks(head: MaskHead, query: Tensor, memory: Tensor, features: Tensor, laterals: list[Tensor]) -> Tensor:
    """Run every query of every image separately, with concatenated inputs, as in the paper's figure."""
    maps, convolutions = head.attention_maps(query, memory), head.convolutions
    images = []
    for b in range(len(query)):
        masks = []
        for q in range(query.shape[1]):
            x = torch.cat([features[b], maps[b, q]]).unsqueeze(0)
            for conv, norm in zip(convolutions.convs[:2], convolutions.norms[:2], strict=True):
                x = norm(conv(x)).relu()
            stages = zip(reversed(laterals), head.laterals, convolutions.convs[2:], convolutions.norms[2:], strict=True)
            for lateral, project, conv, norm in stages:
                x = F.interpolate(x, size=lateral.shape[-2:]) + project(lateral[b : b + 1])
                x = norm(conv(x)).relu()
            masks.append(convolutions.out(x)[0, 0])
        images.append(torch.stack(masks))
    return torch.stack(images)


def inputs(rng: torch.Generator, *, d_model: int = 16, queries: int = 3, sizes: list[tuple[int, int]] | None = None):
    """Return random queries, memory and features of 3 x 4 pixels, and lateral features of increasing size."""
    query = torch.randn(2, queries, d_model, generator=rng, dtype=torch.float64)
    memory, features = torch.randn(2, 2, d_model, 3, 4, generator=rng, dtype=torch.float64)
    laterals = [
        torch.randn(2, channels, *size, generator=rng, dtype=torch.float64)
        for channels, size in zip((5, 6, 7), sizes or [(20, 31), (10, 15), (5, 8)], strict=True)
    ]
    return query, memory, features, laterals


def random_head(d_model: int = 16, n_heads: int = 2, laterals: tuple[int, ...] = (5, 6, 7)) -> MaskHead:
    """Return a float64 head with random biases and norms."""
    head = MaskHead(AttentionMaps(d_model, n_heads), laterals, d_model=d_model).double()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return head


@pytest.mark.parametrize("is_padded", [False, True])
def test_attention_maps_agree_with_loops_over_pixels(is_padded, rng):
    query, memory, *_ = inputs(rng)
    maps = random_head().attention_maps
    padding = torch.rand(2, 3, 4, generator=rng) > 0.5 if is_padded else None
    if padding is not None:
        padding[:, 0, 0] = False
    torch.testing.assert_close(maps(query, memory, padding), naive_maps(maps, query, memory, padding))


def test_maps_of_all_heads_share_one_softmax(rng):
    query, memory, *_ = inputs(rng)
    maps = random_head().attention_maps(query, memory)
    torch.testing.assert_close(maps.sum((2, 3, 4)), torch.ones(2, 3, dtype=torch.float64))
    assert (maps.sum((3, 4)) - 0.5).abs().max() > 0.01


def test_padding_has_no_attention_and_no_gradient(rng):
    query, memory, *_ = inputs(rng)
    memory.requires_grad_()
    padding = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, :, 2:] = True
    maps = random_head().attention_maps(query, memory, padding)
    assert maps[1, ..., 2:].abs().max() == 0
    maps.square().sum().backward()
    assert memory.grad is not None
    assert memory.grad.isfinite().all()
    assert memory.grad[1, :, :, 2:].abs().max() == 0
    assert memory.grad[0].abs().min() > 0


def test_masks_agree_with_queries_run_one_by_one(rng):
    head, (query, memory, features, laterals) = random_head(), inputs(rng)
    masks = head(query, memory, features, laterals)
    assert masks.shape == (2, 3, 20, 31)
    torch.testing.assert_close(masks, naive_masks(head, query, memory, features, laterals))


@pytest.mark.parametrize("with_grad", [True, False])
def test_splitting_the_queries_does_not_change_the_masks(with_grad, rng, monkeypatch):
    head, (query, memory, features, laterals) = random_head(), inputs(rng, queries=7)
    with torch.set_grad_enabled(with_grad):
        whole = head(query, memory, features, laterals)
        monkeypatch.setattr(_mask_head, "_QUERIES_AT_ONCE", 3)
        torch.testing.assert_close(head(query, memory, features, laterals), whole)


def test_few_queries_are_processed_at_a_time(rng):
    # No tensor of the masks' size may have more than 25 queries per image, with gradients or without.
    head, (query, memory, features, laterals) = random_head(), inputs(rng, queries=60)
    seen = []
    head.convolutions.out.register_forward_hook(lambda _, given, out: seen.append(len(given[0])))
    with torch.no_grad():
        assert head(query, memory, features, laterals).shape[1] == 60
    assert seen == [50, 50, 20]


@pytest.mark.parametrize("channels", [(5,), (5, 6), (5, 6, 7), (3, 5, 6, 7)])
def test_any_number_of_lateral_features_works(channels, rng):
    query, memory, features, _ = inputs(rng)
    laterals = [
        torch.randn(2, c, 3 << step, 4 << step, generator=rng, dtype=torch.float64)
        for c, step in zip(channels, range(len(channels), 0, -1), strict=True)
    ]
    head = random_head(d_model=32, laterals=channels)
    query, memory, features = (torch.cat([x, x], dim=d) for x, d in ((query, 2), (memory, 1), (features, 1)))
    assert head(query, memory, features, laterals).shape[-2:] == laterals[0].shape[-2:]


def test_every_parameter_and_input_gets_a_gradient(rng):
    head, (query, memory, features, laterals) = random_head(d_model=32), inputs(rng, d_model=32)
    given = [query, memory, features, *laterals]
    for tensor in given:
        tensor.requires_grad_()
    head(query, memory, features, laterals).square().sum().backward()
    assert [name for name, parameter in head.named_parameters() if not parameter.grad.any()] == []
    assert all(tensor.grad.any() for tensor in given)


def test_published_sizes_have_groups_of_eight():
    with torch.device("meta"):
        head = MaskHead(AttentionMaps(256, 8), (256, 512, 1024), d_model=256)
    assert [norm.num_groups for norm in head.convolutions.norms] == [8] * 5
    assert [conv.out_channels for conv in head.convolutions.convs] == [264, 128, 64, 32, 16]
    assert [lateral.in_channels for lateral in head.laterals] == [1024, 512, 256]


@pytest.mark.parametrize(("d_model", "n_heads", "groups"), [(16, 2, [2, 8, 4, 2, 1]), (64, 4, [4, 8, 8, 8, 4])])
def test_groups_divide_other_numbers_of_channels(d_model, n_heads, groups):
    head = MaskHead(AttentionMaps(d_model, n_heads), (8, 8, 8), d_model=d_model)
    assert [norm.num_groups for norm in head.convolutions.norms] == groups


def test_invalid_arguments_are_refused_with_their_numbers(rng):
    with pytest.raises(ValueError, match=r"d_model \(10\) must be divisible by n_heads \(4\)"):
        AttentionMaps(10, 4)
    with pytest.raises(ValueError, match=r"d_model \(8\) is halved 4 times .* at least 16"):
        MaskHead(AttentionMaps(8, 2), (4, 4, 4), d_model=8)
    with pytest.raises(ValueError, match="at least one feature that is finer"):
        MaskHead(AttentionMaps(16, 2), (), d_model=16)
    query, memory, features, laterals = inputs(rng)
    with pytest.raises(ValueError, match="built for 3 lateral features, got 2"):
        random_head()(query, memory, features, laterals[:2])
