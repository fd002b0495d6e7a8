"""Panoptic segmentation from predictions."""

import pytest
import torch

from deformdetr.config import preset
from deformdetr.models import PanopticPostProcess, SigmoidPostProcess

CAT, DOG, SKY, SEA, NOTHING = range(5)
STUFF = (SKY, SEA)


def outputs_of(classes, masks, *, certainty=9.0):
    """Return predictions of one image, with one query per class and mask."""
    logits = torch.zeros(1, len(classes), NOTHING + 1)
    logits[0, range(len(classes)), classes] = certainty
    masks = torch.as_tensor(masks, dtype=torch.float32)[None]
    return {"pred_logits": logits, "pred_boxes": torch.full((1, len(classes), 4), 0.5), "pred_masks": masks}


def segments_of(outputs, size=None, **settings):
    size = size or tuple(outputs["pred_masks"].shape[2:])
    (segmentation,) = PanopticPostProcess(stuff=STUFF, **settings)(outputs, [size])
    return segmentation


def half(width, columns, value):
    """Return the logits of a mask: `value` in some columns, and its negative elsewhere."""
    mask = torch.full((4, width), -float(value))
    mask[:, columns] = value
    return mask.tolist()


def test_every_pixel_belongs_to_the_most_certain_mask():
    masks = [half(8, slice(0, 5), 3), half(8, slice(3, 8), 4)]
    found = segments_of(outputs_of([CAT, SKY], masks))
    assert found["labels"].tolist() == [CAT, SKY]
    assert found["segment_map"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 2]] * 4
    assert found["scores"].tolist() == pytest.approx([0.9995] * 2, abs=1e-3)


def test_masks_of_one_class_of_stuff_are_merged_and_things_are_not():
    masks = [half(8, slice(0, 4), 3), half(8, slice(4, 8), 3)]
    merged = segments_of(outputs_of([SKY, SKY], masks))
    assert merged["labels"].tolist() == [SKY]
    assert (merged["segment_map"] == 1).all()
    apart = segments_of(outputs_of([CAT, CAT], masks))
    assert apart["labels"].tolist() == [CAT, CAT]
    assert apart["segment_map"].unique().tolist() == [1, 2]


def test_small_segments_leave_their_pixels_to_others_again_and_again():
    # The dog has 4 pixels. Without it, the cat has 4 more, and keeps them.
    masks = [half(8, [0, 1], 3), half(8, [2], 3), half(8, slice(3, 8), 3)]
    masks[0][0][2] = 1.0
    found = segments_of(outputs_of([CAT, DOG, SEA], masks))
    assert found["labels"].tolist() == [CAT, SEA]
    assert [(found["segment_map"] == number).sum().item() for number in (1, 2)] == [12, 20]
    assert segments_of(outputs_of([CAT, DOG, SEA], masks), min_area=4)["labels"].tolist() == [CAT, DOG, SEA]
    # Nothing is left if all are too small.
    empty = segments_of(outputs_of([CAT, DOG, SEA], masks), min_area=33)
    assert not empty["segment_map"].any()
    assert empty["labels"].shape == empty["scores"].shape == (0,)


def test_uncertain_queries_and_those_of_no_object_are_left_out():
    masks = [half(8, slice(0, 4), 3)] * 3
    outputs = outputs_of([CAT, NOTHING, DOG], masks)
    outputs["pred_logits"][0, 2] *= 0.2
    assert segments_of(outputs)["labels"].tolist() == [CAT]
    assert segments_of(outputs, threshold=0.5)["labels"].tolist() == [CAT]
    nothing = segments_of(outputs_of([NOTHING], masks[:1]))
    assert nothing["segment_map"].shape == (4, 8)
    assert not nothing["segment_map"].any()


def test_maps_have_the_size_of_the_image_without_padding():
    mask = torch.full((8, 8), -3.0)
    mask[:2, :4] = 3.0
    outputs = outputs_of([CAT, SKY], torch.stack([mask, -mask]))
    outputs["valid_ratios"] = torch.tensor([[0.5, 0.25]])
    found = segments_of(outputs, (40, 60))
    assert found["segment_map"].shape == (40, 60)
    # The unpadded part of the masks, 2 x 4, is all cat, but for the interpolation at its lower right corner.
    assert found["labels"][0] == CAT
    assert (found["segment_map"] == 1).float().mean() > 0.95


def test_many_masks_are_compared_a_few_at_a_time(rng):
    masks = torch.randn(21, 6, 8, generator=rng)
    found = segments_of(outputs_of([CAT] * 21, masks.tolist()), min_area=1)
    winners = masks.argmax(0)
    assert torch.equal(torch.unique(winners, return_inverse=True)[1] + 1, found["segment_map"])


def test_models_with_sigmoids_have_panoptic_segmentations_too():
    outputs = outputs_of([CAT, SKY], [half(8, slice(0, 5), 3), half(8, slice(3, 8), 4)])
    outputs["pred_logits"] = 2 * outputs["pred_logits"] - 9
    found = segments_of(outputs, detections=SigmoidPostProcess(top_k=4))
    assert sorted(found["labels"].tolist()) == [CAT, SKY]


def test_wrong_arguments_raise():
    outputs = outputs_of([CAT], [half(8, slice(0, 4), 3)])
    with pytest.raises(ValueError, match="1 images, but sizes of 2"):
        PanopticPostProcess(stuff=STUFF)(outputs, [(4, 8)] * 2)
    del outputs["pred_masks"]
    with pytest.raises(ValueError, match="needs the masks of a model with masks=True"):
        PanopticPostProcess(stuff=STUFF)(outputs, [(4, 8)])
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], got 1.1"):
        PanopticPostProcess(stuff=STUFF, threshold=1.1)
    with pytest.raises(ValueError, match="min_area must be positive, got 0"):
        PanopticPostProcess(stuff=STUFF, min_area=0)


def test_preset_has_the_classes_of_the_published_panoptic_models():
    config = preset("detr_r50_panoptic")
    assert config.num_classes == 250
    assert config.masks
