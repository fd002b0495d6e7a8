"""Selecting classes of a checkpoint."""

import pytest
import torch

from checkpoints import VARIANTS, tiny_config
from deformdetr import DETRConfig
from deformdetr.config import ConvBackboneConfig
from deformdetr.integrations import (
    COCO_CATEGORY_IDS,
    CheckpointError,
    load_checkpoint,
    select_classes,
    to_original,
    translate_state_dict,
)

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


def tiny_detr(num_classes):
    backbone = ConvBackboneConfig(channels=(8, 8, 16, 24))
    return DETRConfig(num_classes=num_classes, d_model=16, n_heads=2, d_ffn=24, num_encoder_layers=1, backbone=backbone)


def test_categories_of_coco_are_its_eighty_ids():
    assert len(COCO_CATEGORY_IDS) == 80
    assert COCO_CATEGORY_IDS[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert COCO_CATEGORY_IDS[-8:] == (82, 84, 85, 86, 87, 88, 89, 90)
    # Bicycle, the ids around the gaps, and toothbrush, by their places among the categories.
    places = {1: 2, 10: 11, 24: 27, 25: 28, 26: 31, 39: 44, 40: 46, 59: 65, 60: 67, 61: 70, 62: 72, 73: 84, 79: 90}
    assert {place: COCO_CATEGORY_IDS[place] for place in places} == places


@variants
def test_heads_keep_the_rows_of_the_categories(variant):
    state = tiny_config(num_classes=91, **variant).build().state_dict()
    selected = select_classes(state, COCO_CATEGORY_IDS)
    assert selected.keys() == state.keys()
    for name, tensor in selected.items():
        if name.startswith("class_heads."):
            assert torch.equal(tensor, state[name][list(COCO_CATEGORY_IDS)])
        elif name.startswith("queries.class_head."):
            # Channel 0 tells objects from background: it must not become that of a person.
            assert torch.equal(tensor, state[name][:80])
        else:
            assert tensor is state[name]


def test_detr_keeps_no_object_last():
    state = tiny_detr(91).build().state_dict()
    selected = select_classes(state, COCO_CATEGORY_IDS)
    assert torch.equal(selected["class_head.weight"], state["class_head.weight"][[*COCO_CATEGORY_IDS, 91]])
    assert len(selected["class_head.bias"]) == 81


def test_selected_logits_are_those_of_the_whole_model(rng):
    whole = tiny_config(num_classes=91, two_stage=True, with_box_refine=True).build().eval()
    small = tiny_config(num_classes=80, two_stage=True, with_box_refine=True).build().eval()
    state = to_original(whole.state_dict())
    with pytest.raises(CheckpointError, match="num_classes=91"):
        load_checkpoint(small, state)
    assert load_checkpoint(small, state, classes=COCO_CATEGORY_IDS).fits
    images = torch.randn(1, 3, 64, 64, generator=rng)
    with torch.no_grad():
        expected, found = whole(images), small(images)
    torch.testing.assert_close(found["pred_boxes"], expected["pred_boxes"])
    torch.testing.assert_close(found["pred_logits"], expected["pred_logits"][..., list(COCO_CATEGORY_IDS)])


def test_classes_are_dropped_only_on_request_and_dropped_rows_are_reported():
    state = tiny_config(num_classes=91).build().state_dict()
    state["class_heads.0.weight"][12, 3] = -5.0
    assert len(translate_state_dict(state, "detrex")[0]["class_embed.0.bias"]) == 91
    theirs, report = translate_state_dict(state, "detrex", classes=COCO_CATEGORY_IDS)
    assert len(theirs["class_embed.0.bias"]) == 80
    (loss,) = report.losses
    assert loss.what == "rows of class heads, 80 of which are kept"
    assert (loss.names, loss.largest) == (["class_heads.0.bias", "class_heads.0.weight"], 5.0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "at least one class"),
        ([1, 2, 1], r"must hold at least one class and no duplicates, got \[1, 2, 1\]"),
        ([0, 5], "class_heads.0.weight has classes 0 to 4, but 0 to 5 are asked for"),
        ([-1, 2], "but -1 to 2 are asked for"),
    ],
)
def test_classes_out_of_range_raise(classes, message):
    state = tiny_config().build().state_dict()
    with pytest.raises(ValueError, match=message):
        select_classes(state, classes)
    with pytest.raises(ValueError, match=message):
        translate_state_dict(state, "detrex", classes=classes)


def test_all_classes_in_another_order_are_no_loss():
    state = tiny_config().build().state_dict()
    theirs, report = translate_state_dict(state, "detrex", classes=[4, 3, 2, 1, 0])
    assert torch.equal(theirs["class_embed.0.weight"], state["class_heads.0.weight"].flip(0))
    assert report.lossless


def test_names_of_others_have_to_be_translated_first():
    state = to_original(tiny_config().build().state_dict())
    with pytest.raises(ValueError, match="no class heads in this library's names"):
        select_classes(state, [1])


def test_no_object_of_detr_is_not_a_class():
    with pytest.raises(ValueError, match="has classes 0 to 4, but 1 to 5 are asked for"):
        select_classes(tiny_detr(5).build().state_dict(), [1, 5])
