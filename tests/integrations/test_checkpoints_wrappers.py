"""Weights below the entries and prefixes of training loops, compilers and averages."""

import argparse
import random
from itertools import permutations

import pytest
import torch

from checkpoints import VARIANTS, tiny_config, tiny_detr_config
from deformdetr.integrations import (
    CheckpointError,
    convert_checkpoint,
    load_checkpoint,
    recognize,
    save_checkpoint,
    to_original,
    translate_state_dict,
)
from deformdetr.integrations.hub import from_pretrained, save_pretrained

FORMATS = ("deformdetr", "original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex")
PARTS = ("module", "model", "_orig_mod", "net", "detector", "ema_model", "student")


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def shifted(state, by):
    """Change every value, to tell one state dict from another."""
    return {name: tensor + by for name, tensor in state.items()}


@pytest.fixture
def model():
    return tiny_config(with_box_refine=True).build()


def assert_taken(content, expected, place, left_aside=()):
    """Load it, and check values and what the report says."""
    model = tiny_config(with_box_refine=True).build()
    report = load_checkpoint(model, content)
    assert report.fits
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (report.place, report.left_aside) == (place, tuple(left_aside))
    assert (f"weights from {place}" in str(report)) == bool(place)
    assert ("other weights left aside" in str(report)) == bool(left_aside)


@pytest.mark.parametrize("name", FORMATS)
def test_prefixes_of_any_depth_and_order_are_taken_off(name, model, seed):
    state = model.state_dict()
    theirs, _ = translate_state_dict(state, name)
    drawn = random.Random(seed)
    for depth in (1, 2, 3, 4):
        prefix = "".join(f"{part}." for part in drawn.choices(PARTS, k=depth))
        assert recognize(prefixed(theirs, prefix)) == name, prefix
        back, _ = translate_state_dict(prefixed(theirs, prefix), "deformdetr")
        assert back.keys() == state.keys(), prefix
        assert all(torch.equal(back[key], state[key]) for key in state), prefix


@pytest.mark.parametrize("name", ["original", "hugging_face_4", "hugging_face_5"])
def test_prefixes_before_a_detector_beside_its_mask_head_are_taken_off(name):
    state = tiny_detr_config(d_model=32, num_queries=100, masks=True).build().state_dict()
    theirs, _ = translate_state_dict(state, name)
    for prefix in ("module.", "model.", "model.module."):
        back, report = translate_state_dict(prefixed(theirs, prefix), "deformdetr")
        assert (report.source, report.place) == (name, f"names after {prefix}")
        assert back.keys() == state.keys()


@pytest.mark.parametrize("variant", [*VARIANTS.values(), None])
def test_names_that_begin_like_wrappers_are_left_alone(variant):
    # transformers' models have a part called model.
    config = tiny_detr_config(num_queries=100) if variant is None else tiny_config(**variant)
    for name in ("hugging_face_4", "hugging_face_5"):
        theirs, _ = translate_state_dict(config.build().state_dict(), name, allow_loss=True)
        assert recognize(theirs) == name
        assert recognize(prefixed(theirs, "model.")) == name
    assert recognize(prefixed(config.build().state_dict(), "model.")) == "deformdetr"


@pytest.mark.parametrize("order", list(permutations(["module.", "_orig_mod.", "model."])))
def test_entries_and_prefixes_go_together(order, model, tmp_path):
    state = prefixed(model.state_dict(), "".join(order))
    torch.save({"epoch": 3, "state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "epoch.ckpt")
    prefix = "".join(order).replace("_orig_mod.", "")
    assert_taken(tmp_path / "epoch.ckpt", model.state_dict(), f"entry state_dict, names after {prefix}")


def test_an_average_of_weights_is_read_without_its_count(model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert "n_averaged" in averaged.state_dict()
    assert_taken(averaged.state_dict(), model.state_dict(), "names after module.")


def test_compiled_and_wrapped_parts_inside_of_a_model_are_seen_through(model):
    state = {
        name.replace("backbone.", "backbone._orig_mod.")
        .replace("encoder.layers.0.", "encoder.layers.0._checkpoint_wrapped_module.")
        .replace("decoder.", "decoder._fsdp_wrapped_module."): tensor
        for name, tensor in model.state_dict().items()
    }
    assert_taken(state, model.state_dict(), "")


def test_two_entries_that_differ_by_a_wrapper_alone_raise(model):
    state = model.state_dict()
    with pytest.raises(CheckpointError, match=r"level_embed has the name of another entry after removing wrappers"):
        load_checkpoint(model, {"_orig_mod.level_embed": state["level_embed"], **state})


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        (("model",), "entry model"),
        (("state_dict",), "entry state_dict"),
        (("model_ema",), "entry model_ema"),
        (("ema", "module"), "entry ema.module"),
        (("checkpoint", "ema", "module"), "entry checkpoint.ema.module"),
        (("weights", "detector"), "entry weights.detector"),
        (tuple("abcdef"), "entry a.b.c.d.e.f"),
    ],
)
def test_entries_of_any_name_and_depth_are_opened(entries, place, model):
    content = model.state_dict()
    for entry in reversed(entries):
        content = {entry: content, "updates": 5, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    assert_taken(content, model.state_dict(), place)


def test_of_several_weights_an_average_comes_last_then_the_nearest_then_the_first(model):
    state = model.state_dict()
    other = shifted(state, 1)
    assert_taken({"ema": {"module": other}, "model": state}, state, "entry model", ["entry ema.module"])
    assert_taken({"model_ema": other, "state_dict": state}, state, "entry state_dict", ["entry model_ema"])
    assert_taken({"best": {"model": other}, "model": state}, state, "entry model", ["entry best.model"])
    assert_taken({"teacher": state, "student": other}, state, "entry teacher", ["entry student"])
    beside = prefixed(other, "ema_model.module.") | prefixed(state, "model.")
    assert_taken(beside, state, "names after model.", ["names after ema_model.module."])
    # What is no model of ours is not looked at.
    assert_taken({"model": {"conv1.weight": torch.zeros(1)}, "ema": other}, other, "entry ema")


def test_content_that_holds_itself_is_read_once(model):
    content = {"model": model.state_dict()}
    content["self"] = content
    for _ in range(40):
        content = {"first": content, "second": content}
    assert load_checkpoint(model, content).fits


def test_tensors_beside_a_prefix_are_reported(model, tmp_path):
    state = prefixed(model.state_dict(), "model.")
    state["class_heads.0.bias"] = state.pop("model.class_heads.0.bias")
    told = "1 tensor (class_heads.0.bias) without such a prefix"
    assert load_checkpoint(model, state, strict=False).left_aside == (told,)
    with pytest.raises(CheckpointError, match=r"1 missing[^:]*:\n  class_heads\.0\.bias[\s\S]*1 tensor \(class_heads"):
        load_checkpoint(model, state)
    torch.save(state, tmp_path / "parts.pth")
    report = convert_checkpoint(tmp_path / "parts.pth", tmp_path / "out.pth", "deformdetr")
    assert told in str(report)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda tensor: tensor.to(torch.complex64), "complex"),
        (lambda tensor: tensor.to_sparse(), "torch.sparse_coo on cpu"),
        (lambda tensor: tensor.to("meta"), "torch.strided on meta"),
    ],
)
def test_tensors_that_are_not_plain_are_refused_before_anything_is_loaded(change, kind, model):
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    name = "class_heads.0.weight"
    content = {"model": shifted(state, 1)}
    content["model"][name] = change(state[name])
    with pytest.raises(CheckpointError, match=rf"it holds a tensor that is not plain: '{name}' is {kind}"):
        load_checkpoint(model, content)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=f"'{name}' is {kind}"):
        translate_state_dict(content, "original")


def test_conversion_says_where_weights_came_from(model, tmp_path):
    state = to_original(model.state_dict())
    torch.save({"model": state, "ema": {"module": state}}, tmp_path / "both.pth")
    report = convert_checkpoint(tmp_path / "both.pth", tmp_path / "out.pth", "detrex")
    assert (report.place, report.left_aside, report.lossless) == ("entry model", ("entry ema.module",), True)
    assert "weights from entry model\nother weights left aside: entry ema.module" in str(report)


def test_half_precision_is_read_into_the_model_and_kept_by_conversion(model, tmp_path):
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    assert_taken(state, {name: tensor.float() for name, tensor in state.items()}, "")
    torch.save(state, tmp_path / "half.pth")
    convert_checkpoint(tmp_path / "half.pth", tmp_path / "out.safetensors", "original")
    back = tiny_config(with_box_refine=True).build().half()
    load_checkpoint(back, tmp_path / "out.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())


def test_a_wrapped_model_is_saved_without_its_wrapper(model, tmp_path):
    save_checkpoint(torch.optim.swa_utils.AveragedModel(model), tmp_path / "model.pth")
    assert torch.load(tmp_path / "model.pth", weights_only=True).keys() == model.state_dict().keys()


def test_what_is_refused_is_described():
    content = {
        "model": {f"layer{number}.weight": torch.zeros(1) for number in range(6)},
        "args": argparse.Namespace(lr=1),
        "epoch": 3,
    }
    with pytest.raises(
        CheckpointError,
        match=r"it holds model: 6 tensors \(layer0\.weight, layer1.*, layer3\.weight, \.\.\.\); args: Namespace",
    ):
        load_checkpoint(tiny_config().build(), content)
    many = {f"entry {number}": number for number in range(20)}
    with pytest.raises(CheckpointError, match=r"entry 7: int; 12 more entries$"):
        load_checkpoint(tiny_config().build(), many)


def compiled(module):
    """Return a module with the names that `torch.compile` gives to its parameters."""
    wrapper = torch.nn.Module()
    wrapper.add_module("_orig_mod", module)
    return wrapper


def compiled_in_part(model):
    model.encoder = compiled(model.encoder)
    return model


WRAPPERS = [compiled, compiled_in_part, torch.nn.DataParallel, torch.optim.swa_utils.AveragedModel]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_models_take_checkpoints_and_are_saved(wrap, model, tmp_path):
    wrapped = wrap(tiny_config(with_box_refine=True).build())
    report = load_checkpoint(wrapped, model.state_dict())
    assert report.fits
    save_pretrained(wrapped, tiny_config(with_box_refine=True), tmp_path)
    for name, tensor in from_pretrained(tmp_path).state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


def test_what_a_wrapper_adds_is_reported_as_missing(model):
    wrapped = torch.nn.Module()
    wrapped.model, wrapped.reid = tiny_config(with_box_refine=True).build(), torch.nn.Linear(2, 2)
    report = load_checkpoint(wrapped, model.state_dict(), strict=False)
    assert report.missing == ["reid.bias", "reid.weight"]
    with pytest.raises(CheckpointError, match=r"reid\.bias"):
        load_checkpoint(wrapped, model.state_dict())


def test_other_models_take_the_layers_that_they_have(model):
    other = torch.nn.Module()
    other.encoder = tiny_config(with_box_refine=True).build().encoder
    report = load_checkpoint(other, model.state_dict(), strict=False)
    assert set(report.loaded) == set(other.state_dict())


def test_models_without_memory_take_no_checkpoint(model):
    with pytest.raises(CheckpointError, match=r"the model cannot take a checkpoint: it has no memory"):
        load_checkpoint(tiny_config(with_box_refine=True).build().to("meta"), model.state_dict())
