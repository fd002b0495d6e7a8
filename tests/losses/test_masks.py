"""Losses of masks against formulas written out pair by pair."""

import math

import pytest
import torch
from torch import Tensor

from deformdetr.losses import SetCriterion
from deformdetr.matching import HungarianMatcher
from deformdetr.structures import Predictions
from targets import random_targets

SIZES = [(12, 17), (15, 10), (9, 9)]


def predictions(
    batch: int, rng: torch.Generator, *, queries: int = 6, dtype: torch.dtype = torch.float32
) -> Predictions:
    """Draw predictions of one layer and of one before it, with masks of stride 4 for images of 15 x 17 pixels."""

    def layer() -> dict[str, Tensor]:
        return {
            "pred_logits": torch.randn(batch, queries, 3, generator=rng, dtype=dtype).requires_grad_(),
            "pred_boxes": (torch.rand(batch, queries, 4, generator=rng, dtype=dtype) * 0.4 + 0.3).requires_grad_(),
        }

    masks = (torch.randn(batch, queries, 4, 5, generator=rng, dtype=dtype) * 3).requires_grad_()
    return {**layer(), "pred_masks": masks, "aux_outputs": [layer()]}


def with_masks(counts, rng, *, sizes=SIZES, dtype=torch.float32):
    """Draw targets with masks as large as each image without its padding."""
    targets = random_targets(counts, 3, rng, dtype)
    for target, size in zip(targets, sizes, strict=False):
        target["masks"] = torch.rand(len(target["labels"]), *size, generator=rng) > 0.5
    return targets


def sampled(mask: Tensor, height: int, width: int) -> list[list[float]]:
    """Enlarge a mask by bilinear interpolation at pixel centers, value by value."""

    def at(place: float, length: int) -> tuple[int, int, float]:
        place = max(place, 0.0)
        low = min(int(place), length - 1)
        return low, min(low + 1, length - 1), place - low

    rows = []
    for y in range(height):
        top, bottom, down = at((y + 0.5) * mask.shape[0] / height - 0.5, mask.shape[0])
        row = []
        for x in range(width):
            left, right, across = at((x + 0.5) * mask.shape[1] / width - 0.5, mask.shape[1])
            upper = float(mask[top, left]) * (1 - across) + float(mask[top, right]) * across
            lower = float(mask[bottom, left]) * (1 - across) + float(mask[bottom, right]) * across
            row.append(upper * (1 - down) + lower * down)
        rows.append(row)
    return rows


def by_hand(mask: Tensor, truth: Tensor, height: int, width: int) -> tuple[float, float]:
    """Return focal and dice loss of one mask in one image, padded with background."""
    focal = overlap = predicted = true = 0.0
    for y, row in enumerate(sampled(mask, height, width)):
        for x, logit in enumerate(row):
            inside = y < truth.shape[0] and x < truth.shape[1] and bool(truth[y, x])
            p = 1 / (1 + math.exp(-logit))
            focal -= 0.25 * (1 - p) ** 2 * math.log(p) if inside else 0.75 * p**2 * math.log(1 - p)
            overlap += 2 * p * inside
            predicted += p
            true += inside
    return focal / (height * width), 1 - (overlap + 1) / (predicted + true + 1)


@pytest.mark.parametrize("counts", [(2, 0, 3), (8, 1, 7), (0, 0, 0)], ids=["some", "more than queries", "none"])
def test_losses_agree_with_sums_over_pairs_and_pixels(counts, rng):
    outputs = predictions(3, rng, dtype=torch.float64)
    targets = with_masks(counts, rng, dtype=torch.float64)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    expected = [0.0, 0.0]
    for image, (query, other) in enumerate(HungarianMatcher()(outputs, targets)):
        for q, t in zip(query.tolist(), other.tolist(), strict=True):
            pair = by_hand(outputs["pred_masks"].detach()[image, q], targets[image]["masks"][t], 15, 17)
            expected = [total + loss for total, loss in zip(expected, pair, strict=True)]
    count = max(1, sum(counts))
    assert losses["loss_mask"].item() == pytest.approx(expected[0] / count, rel=1e-9, abs=1e-12)
    assert losses["loss_dice"].item() == pytest.approx(expected[1] / count, rel=1e-9, abs=1e-12)
    assert {name for name in losses if name.startswith(("loss_mask", "loss_dice"))} == {"loss_mask", "loss_dice"}


def test_only_masks_of_matched_queries_get_a_gradient(rng):
    outputs, targets = predictions(3, rng), with_masks((2, 0, 3), rng)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    gradient = outputs["pred_masks"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    for image, (query, _) in enumerate(HungarianMatcher()(outputs, targets)):
        has_gradient = gradient[image].flatten(1).any(1)
        assert has_gradient.nonzero().flatten().tolist() == query.tolist()


def test_losses_of_masks_have_the_right_gradient(rng):
    outputs, targets = predictions(2, rng, dtype=torch.float64), with_masks((2, 1), rng, dtype=torch.float64)
    criterion = SetCriterion(HungarianMatcher())

    def total(masks: Tensor) -> Tensor:
        losses = criterion({**outputs, "pred_masks": masks}, targets)
        return losses["loss_mask"] + 3 * losses["loss_dice"]

    assert torch.autograd.gradcheck(total, (outputs["pred_masks"],))


def test_mask_losses_without_targets_are_zero_and_have_gradients(rng):
    outputs, targets = predictions(2, rng), with_masks((0, 0), rng)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert outputs["pred_masks"].grad is not None


def test_losses_of_perfect_masks_are_lower_than_of_random_and_inverted_ones(rng):
    targets = with_masks((2, 3), rng, sizes=[(16, 20), (16, 20)])
    for target in targets:
        target["masks"] = target["masks"][:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)
    outputs = predictions(2, rng)
    matches = HungarianMatcher()(outputs, targets)
    found = {}
    for sign in (1, 0, -1):
        masks = torch.zeros(2, 6, 4, 5)
        for image, (query, other) in enumerate(matches):
            masks[image, query] = sign * 20 * (targets[image]["masks"][other][:, ::4, ::4].float() - 0.5)
        losses = SetCriterion(HungarianMatcher())({**outputs, "pred_masks": masks}, targets)
        found[sign] = (losses["loss_mask"].item(), losses["loss_dice"].item())
    assert found[1] < found[0] < found[-1]
    assert all(a < b for a, b in zip(found[1], found[0], strict=True))


def test_mask_losses_have_the_given_weights(rng):
    weights = {"loss_mask": 2.0, "loss_dice": 0.5}
    criterion = SetCriterion(HungarianMatcher(), weights=weights)
    losses = criterion(predictions(3, rng), with_masks((2, 0, 3), rng))
    assert set(criterion.weighted(losses)) == {"loss_mask", "loss_dice"}
    torch.testing.assert_close(criterion.total(losses), 2 * losses["loss_mask"] + losses["loss_dice"] / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(dtype, rng):
    outputs, targets = predictions(3, rng), with_masks((2, 0, 3), rng)
    half = {**outputs, "pred_masks": outputs["pred_masks"].detach().to(dtype)}
    rounded = {**outputs, "pred_masks": half["pred_masks"].float()}
    criterion = SetCriterion(HungarianMatcher())
    torch.testing.assert_close(criterion(half, targets), criterion(rounded, targets), rtol=0, atol=0)


def test_masks_of_other_shapes_raise_with_the_shape(rng):
    criterion, outputs = SetCriterion(HungarianMatcher()), predictions(3, rng)
    targets = with_masks((2, 0, 3), rng)
    del targets[1]["masks"]
    with pytest.raises(ValueError, match="predicts masks, but targets of image 1 have only boxes, labels"):
        criterion(outputs, targets)
    for shape in ((1, 15, 10), (0, 15), (0, 0, 10)):
        targets[1]["masks"] = torch.zeros(shape, dtype=torch.bool)
        with pytest.raises(
            ValueError, match=r"masks of image 1 must have shape \(0, height, width\).*got \(" + str(shape[0])
        ):
            criterion(outputs, targets)
    targets[1]["masks"] = torch.zeros(0, 15, 10, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="masks of image 1 are on meta, the predictions on cpu"):
        criterion(outputs, targets)


def test_masks_of_targets_are_ignored_by_models_without_masks(rng):
    outputs, targets = predictions(3, rng), with_masks((2, 0, 3), rng)
    del outputs["pred_masks"]
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    assert not {"loss_mask", "loss_dice"} & losses.keys()


def test_more_padding_does_not_change_the_losses(rng):
    targets = with_masks((2, 0, 3), rng)
    outputs = predictions(3, rng)
    # The largest height and width are 15 and 17 pixels, those of the batch 20 and 40.
    wide = torch.nn.functional.interpolate(outputs["pred_masks"].detach(), (15, 17), mode="bilinear")
    padded = torch.nn.functional.pad(wide, (0, 23, 0, 5), value=9.0)
    sizes = torch.tensor([[w, h] for h, w in SIZES])
    criterion = SetCriterion(HungarianMatcher())
    found, expected = (
        criterion({**outputs, "pred_masks": masks, **more}, targets)
        for masks, more in ((padded, {"valid_ratios": sizes / torch.tensor([40, 20])}), (wide, {}))
    )
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(found[name], expected[name])
