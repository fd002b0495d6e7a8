"""Checkpoints with a mask head: their formats, and models or checkpoints without one."""

import pytest
import torch

from checkpoints import VARIANTS, assert_equal, random_state, tiny_config, tiny_detr_config
from deformdetr.integrations import (
    CheckpointError,
    load_checkpoint,
    recognize,
    to_hugging_face,
    to_original,
    translate_state_dict,
)
from deformdetr.integrations.hub import from_pretrained, pretrained_config, save_pretrained

DETR = tiny_detr_config(d_model=32, num_decoder_layers=2, num_queries=100, masks=True)
# Of the published mask head, as DETR's repository names it.
HEAD = {
    "bbox_attention.q_linear": (32, 32),
    "bbox_attention.k_linear": (32, 32),
    "mask_head.lay1": (34, 34, 3, 3),
    "mask_head.gn1": (34,),
    "mask_head.lay2": (16, 34, 3, 3),
    "mask_head.gn2": (16,),
    "mask_head.lay3": (8, 16, 3, 3),
    "mask_head.gn3": (8,),
    "mask_head.lay4": (4, 8, 3, 3),
    "mask_head.gn4": (4,),
    "mask_head.lay5": (2, 4, 3, 3),
    "mask_head.gn5": (2,),
    "mask_head.out_lay": (1, 2, 3, 3),
    "mask_head.adapter1": (16, 16, 1, 1),
    "mask_head.adapter2": (8, 8, 1, 1),
    "mask_head.adapter3": (4, 8, 1, 1),
}
CONFIGS = {"detr": DETR} | {name: tiny_config(d_model=32, masks=True, **each) for name, each in VARIANTS.items()}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@configs
def test_the_original_has_the_detector_beside_its_mask_head(config, rng):
    state = random_state(config, rng)
    theirs = to_original(state)
    head = {name: tuple(value.shape) for name, value in theirs.items() if not name.startswith("detr.")}
    weights = {name.removesuffix(".weight"): shape for name, shape in head.items() if name.endswith(".weight")}
    assert weights == HEAD
    assert len(head) == 2 * len(HEAD)
    plain = {name: value for name, value in state.items() if not name.startswith("mask_head.")}
    assert {name.removeprefix("detr.") for name in theirs.keys() - head.keys()} == to_original(plain).keys()
    assert recognize(theirs) == "original"
    assert recognize(state) == "deformdetr"


# The original has no heads of the encoder's own in two stages without refinement.
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"two_stage_without_refinement"}))
def test_checkpoints_of_the_original_load(name, rng):
    config = CONFIGS[name]
    state = random_state(config, rng)
    model = config.build()
    report = load_checkpoint(model, to_original(state))
    assert (report.format, report.fits) == ("original", True)
    assert_equal(model.state_dict(), state)


@pytest.mark.parametrize("name", ["original", "hugging_face_4", "hugging_face_5"])
def test_round_trip_of_detr_with_masks_changes_no_bit(name, rng):
    state = random_state(DETR, rng)
    theirs, there = translate_state_dict(state, name)
    assert recognize(theirs) == name
    assert "masks" in there.model
    back, _ = translate_state_dict(theirs, "deformdetr")
    assert_equal(back, state)
    assert there.lossless
    assert there.losses == []


def test_version_4_of_transformers_names_the_mask_head_as_the_original_does(rng):
    state = random_state(DETR, rng)
    original, older = to_original(state), to_hugging_face(state, version=4)
    beside = {name for name in older if not name.startswith("detr.")}
    assert beside == {name for name in original if not name.startswith("detr.")}
    assert all(torch.equal(older[name], original[name]) for name in beside)


@pytest.mark.parametrize("name", ["hugging_face_5", "mmdetection_3", "detrex"])
def test_formats_without_a_mask_head_report_its_loss(name):
    config = tiny_config(d_model=32, masks=True)
    state = config.build().state_dict()
    with pytest.raises(ValueError, match=r"would lose\n  entries without a counterpart, 32 entries,.* mask_head\."):
        translate_state_dict(state, name)
    theirs, report = translate_state_dict(state, name, allow_loss=True)
    assert not any("mask_head" in key or key.startswith("detr.") for key in theirs)
    lost = [loss for loss in report.losses if any(key.startswith("mask_head.") for key in loss.names)]
    assert len(lost) == 1
    assert len(lost[0].names) == 2 * len(HEAD)
    assert not report.lossless


@configs
@pytest.mark.parametrize("name", ["deformdetr", "original"])
def test_weights_of_a_detector_load_into_a_model_with_masks_on_request(config, name, rng):
    plain = random_state(config.replace(masks=False), rng)
    theirs, _ = translate_state_dict(plain, name, allow_loss=True)
    model = config.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"build it with masks=False or load it with new_mask_head=True"):
        load_checkpoint(model, theirs)
    assert_equal(model.state_dict(), before)
    report = load_checkpoint(model, theirs, new_mask_head=True)
    assert report.fits
    assert report.missing == []
    assert len(report.new) == 2 * len(HEAD)
    assert f"{2 * len(HEAD)} of a new mask head" in str(report)
    after = model.state_dict()
    heads = {key for key in after if key.startswith("mask_head.")}
    assert all(torch.equal(after[key], before[key] if key in heads else plain[key]) for key in after if key in plain)
    assert heads == set(report.new)


def test_a_mask_head_that_is_incomplete_is_not_a_new_one(rng):
    state = random_state(DETR, rng)
    del state["mask_head.laterals.0.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing from the checkpoint:\n  mask_head\.laterals\.0\.bias"):
        load_checkpoint(DETR.build(), state, new_mask_head=True)


@configs
def test_masks_that_the_model_lacks_are_advised(config, rng):
    with pytest.raises(CheckpointError, match=r"predicts masks, the model predicts no masks: build it with masks=True"):
        load_checkpoint(config.replace(masks=False).build(), to_original(random_state(config, rng)))


@pytest.mark.parametrize("config", [DETR, CONFIGS["two_stage"]], ids=["detr", "two_stage"])
def test_a_model_with_masks_is_restored_from_a_folder(config, tmp_path):
    model = config.build()
    save_pretrained(model, config, tmp_path)
    assert_equal(from_pretrained(tmp_path).state_dict(), model.state_dict())
    assert pretrained_config(tmp_path) == config
    assert "pipeline_tag: image-segmentation" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match=r"does not describe this model: 32 entries differ, the first is mask_head\."):
        save_pretrained(model, config.replace(masks=False), tmp_path)
