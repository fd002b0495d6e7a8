"""Denoising queries: their noise, their order and their attention mask."""

import math

import pytest
import torch
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from deformdetr.boxes import cxcywh_to_xyxy
from deformdetr.nn import ContrastiveDenoising, Denoising, NoisedQueries
from deformdetr.nn._denoising import flip_labels, move_sides, shift_and_stretch
from targets import random_targets

D_MODEL, CLASSES = 8, 5
KINDS = {"dn": Denoising, "cdn": ContrastiveDenoising}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def _embedded(module, labels):
    """Return the content of labels without noise."""
    content = module.label_embedding(labels)
    return torch.cat([content, torch.ones_like(content[..., :1])], dim=-1) if isinstance(module, Denoising) else content


@kinds
def test_places_of_a_group_follow_the_order_of_the_targets(kind, rng):
    targets = random_targets([3, 1, 0], CLASSES, rng)
    silent = {"label_noise_scale" if kind is Denoising else "label_noise_ratio": 0.0, "box_noise_scale": 0.0}
    module = kind(CLASSES, D_MODEL, **silent)
    noised = module(targets)
    copies = 2 if kind is ContrastiveDenoising else 1
    assert noised.content.shape == (3, noised.num_groups * copies * 3, D_MODEL)
    for image, target in enumerate(targets):
        count = len(target["labels"])
        content = noised.content[image].unflatten(0, (-1, 3))
        boxes = noised.reference_points[image].unflatten(0, (-1, 3))
        for copy in range(noised.num_groups * copies):
            assert torch.equal(content[copy, :count], _embedded(module, target["labels"]))
            torch.testing.assert_close(boxes[copy, :count], target["boxes"])
        assert not content[:, count:].any()
        assert torch.equal(boxes[:, count:], torch.full_like(boxes[:, count:], 0.5))


@pytest.mark.parametrize(
    ("number", "counts", "groups"),
    [(100, [7, 3], 14), (100, [1], 100), (100, [101, 2], 1), (1, [3], 1), (12, [5, 4], 2), (9, [0, 0], 9)],
)
def test_the_number_of_contrastive_groups_depends_on_the_largest_number_of_targets(number, counts, groups, rng):
    noised = ContrastiveDenoising(CLASSES, D_MODEL, dn_number=number)(random_targets(counts, CLASSES, rng))
    assert noised.num_groups == groups
    assert noised.content.shape[1] == groups * 2 * max(counts)


def test_contrastive_groups_agree_with_those_of_transformers(rng, seed):
    targets = random_targets([4, 2, 0], CLASSES, rng)
    module = ContrastiveDenoising(CLASSES, D_MODEL, dn_number=11, label_noise_ratio=0.7, box_noise_scale=1.0, eps=1e-5)
    theirs = [{"boxes": target["boxes"], "class_labels": target["labels"]} for target in targets]
    torch.manual_seed(seed)
    content, logits, mask, meta = get_contrastive_denoising_training_group(
        theirs, CLASSES, 6, module.label_embedding, 11, 0.7, 1.0
    )
    torch.manual_seed(seed)
    noised = module(targets)
    assert noised.num_groups == meta["dn_num_group"] == 2
    assert torch.equal(noised.content, content)
    is_target = (torch.arange(4) < torch.tensor([[4], [2], [0]])).repeat(1, 4)
    torch.testing.assert_close(noised.reference_points[is_target], logits.sigmoid()[is_target], rtol=0, atol=2e-5)
    assert torch.equal(noised.attention_mask(6), mask.isinf())


@pytest.mark.parametrize(("groups", "places", "queries"), [(3, 2, 4), (1, 3, 2), (2, 0, 3), (1, 1, 1)])
def test_attention_mask_agrees_with_loops_over_pairs(groups, places, queries):
    count = groups * places
    noised = NoisedQueries(torch.zeros(1, count, D_MODEL), torch.zeros(1, count, 4), groups, False)
    mask = noised.attention_mask(queries)
    assert mask.shape == (count + queries, count + queries)
    for row in range(count + queries):
        for column in range(count + queries):
            is_matched = column >= count
            of_one_group = row < count and not is_matched and row // places == column // places
            assert mask[row, column].item() == (not is_matched and not of_one_group)


def test_labels_are_flipped_to_any_class_with_the_given_probability(rng):
    labels = torch.full((4, 5000), 2)
    labels[:, 4000:] = CLASSES
    flipped = flip_labels(labels, CLASSES, 0.3)
    assert torch.equal(flipped[:, 4000:], labels[:, 4000:])
    shares = torch.bincount(flipped[:, :4000].flatten(), minlength=CLASSES) / 16000
    expected = torch.tensor([0.06, 0.06, 0.76, 0.06, 0.06])
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.02)
    assert torch.equal(flip_labels(labels, CLASSES, 0.0), labels)


def test_boxes_are_shifted_and_stretched_within_the_scale():
    boxes = torch.tensor([0.5, 0.4, 0.2, 0.1]).expand(1, 20000, 4)
    change = (shift_and_stretch(boxes, 0.4) - boxes)[0]
    bounds = torch.tensor([0.5 * 0.2, 0.5 * 0.1, 0.2, 0.1]) * 0.4
    extremes = torch.stack([change.amin(0), change.amax(0)]) / bounds
    torch.testing.assert_close(extremes, torch.tensor([[-1.0] * 4, [1.0] * 4]), rtol=0, atol=0.01)
    torch.testing.assert_close(change.std(0) / bounds, torch.full((4,), 1 / math.sqrt(3)), rtol=0, atol=0.02)


def test_sides_of_negatives_move_farther_than_those_of_positives():
    boxes = torch.tensor([0.5, 0.4, 0.2, 0.1]).expand(1, 20000, 4)
    is_negative = torch.arange(20000) % 2 == 1
    moved = cxcywh_to_xyxy(move_sides(boxes, 0.4, is_negative)) - cxcywh_to_xyxy(boxes)
    share = moved[0] / (torch.tensor([0.1, 0.05, 0.1, 0.05]) * 0.4)
    for chosen, least, most in ((~is_negative, 0, 1), (is_negative, 1, 2)):
        assert share[chosen].abs().min().item() == pytest.approx(least, abs=0.01)
        assert share[chosen].abs().max().item() == pytest.approx(most, abs=0.01)
        assert share[chosen].abs().mean().item() == pytest.approx((least + most) / 2, abs=0.02)
        assert (share[chosen] > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


@kinds
def test_noised_boxes_stay_inside_the_image_and_have_a_size(kind, rng):
    targets = random_targets([5, 3], CLASSES, rng)
    boxes = kind(CLASSES, D_MODEL, box_noise_scale=3.0, eps=0.01)(targets).reference_points
    assert boxes.min().item() == pytest.approx(0.01)
    assert boxes.max().item() <= 0.99 + 1e-6


@kinds
@pytest.mark.parametrize("counts", [[0], [0, 0]])
def test_no_targets_give_no_queries_that_still_train_the_embedding(kind, counts, rng):
    module = kind(CLASSES, D_MODEL)
    noised = module(random_targets(counts, CLASSES, rng))
    assert noised.content.shape == (len(counts), 0, D_MODEL)
    assert noised.reference_points.shape == (len(counts), 0, 4)
    assert noised.attention_mask(3).shape == (3, 3)
    assert not noised.attention_mask(3).any()
    torch.cat([noised.content, torch.ones(len(counts), 2, D_MODEL)], dim=1).sum().backward()
    assert module.label_embedding.weight.grad is not None


@kinds
def test_padding_has_no_gradient(kind, rng):
    module = kind(CLASSES, D_MODEL)
    noised = module(random_targets([1, 4], CLASSES, rng))
    noised.content.square().sum().backward()
    assert not module.label_embedding.weight[-1].any()
    assert not module.label_embedding.weight.grad[-1].any()
    assert module.label_embedding.weight.grad.any()


@kinds
@pytest.mark.parametrize("label", [-1, CLASSES, 1000])
def test_an_invalid_label_is_left_to_the_matcher(kind, label):
    targets = [{"boxes": torch.full((1, 4), 0.5), "labels": torch.tensor([label])}]
    assert kind(CLASSES, D_MODEL)(targets).content.isfinite().all()


@kinds
def test_boxes_are_noised_in_at_least_float32(kind, rng):
    targets = random_targets([2], CLASSES, rng)
    halves = [{**target, "boxes": target["boxes"].bfloat16()} for target in targets]
    assert kind(CLASSES, D_MODEL).bfloat16()(halves).reference_points.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Denoising(3, 8, num_groups=0), "num_groups must be at least 1, got 0"),
        (lambda: ContrastiveDenoising(3, 8, dn_number=0), "dn_number must be at least 1, got 0"),
        (lambda: Denoising(3, 8, label_noise_scale=1.5), r"label noise must lie in \[0, 1\] .*got 1.5, 0.4"),
        (lambda: ContrastiveDenoising(3, 8, box_noise_scale=-1.0), "box noise be at least 0, got 0.5, -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("counts", [(2, 0, 5), (1,), (0, 0)])
def test_positives_are_counted_before_they_are_made(counts, rng):
    targets = random_targets(counts, 3, rng)
    for denoising, factor in ((Denoising(3, 8, num_groups=4), 1), (ContrastiveDenoising(3, 8, dn_number=11), 2)):
        queries = denoising(targets)
        places = queries.content.shape[1] // (queries.num_groups * factor)
        assert places == max(counts)
        assert denoising.num_positives(targets) == queries.num_groups * sum(counts)
