"""Loading checkpoints: files of every kind, and reports of mismatches."""

import argparse
import pathlib

import pytest
import safetensors.torch
import torch
from torch import nn

from checkpoints import VARIANTS, assert_equal, golden_checkpoint, tiny_config
from deformdetr import Detector, preset
from deformdetr.integrations import (
    CheckpointError,
    from_original,
    load_checkpoint,
    recognize,
    to_original,
)
from goldens import load_golden

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@variants
def test_round_trip_through_the_original_names_changes_no_bit(variant):
    state = tiny_config(**variant).build().state_dict()
    original = to_original(state)
    assert recognize(original) == "original"
    assert recognize(state) == "deformdetr"
    assert_equal(from_original(original), state)


@variants
def test_original_names_hold_every_head_once_per_layer(variant):
    names = to_original(tiny_config(**variant).build().state_dict()).keys()
    refines, two_stage = variant.get("with_box_refine", False), variant.get("two_stage", False)
    heads = 4 if two_stage else 3
    for stem, expected in (
        ("class_embed", heads),
        ("bbox_embed", heads),
        ("transformer.decoder.bbox_embed", heads if refines else 0),
        ("transformer.decoder.class_embed", heads if two_stage else 0),
    ):
        assert len({name.removeprefix(stem).split(".")[1] for name in names if name.startswith(f"{stem}.")}) == expected


def test_original_of_a_real_size_round_trips():
    golden = load_golden("two_stage")
    state = golden_checkpoint(golden)
    assert_equal(to_original(from_original(state)), state)


@variants
def test_loaded_model_has_the_values_of_the_checkpoint(variant):
    source, model = tiny_config(**variant).build(), tiny_config(**variant).build()
    report = load_checkpoint(model, to_original(source.state_dict()))
    assert report.fits
    assert report.format == "original"
    assert report.loaded == sorted(model.state_dict())
    assert_equal(model.state_dict(), source.state_dict())


def test_equal_heads_of_an_untrained_model_with_refinement_load():
    source, model = (tiny_config(with_box_refine=True).build() for _ in range(2))
    for heads in (source.class_heads, source.decoder.box_heads):
        for head in heads[1:]:
            head.load_state_dict(heads[0].state_dict())
    load_checkpoint(model, to_original(source.state_dict()))
    assert_equal(model.state_dict(), source.state_dict())


def save_original(state, path):
    arguments = argparse.Namespace(lr=2e-4, output_dir="out", masks=False, lr_backbone_names=["backbone.0"])
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"model": state, "optimizer": optimizer, "epoch": 49, "args": arguments}, path)


def save_safetensors(state, path):
    safetensors.torch.save_file({name: value.clone() for name, value in state.items()}, path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("checkpoint0049.pth", save_original),
        ("bare.pth", torch.save),
        ("lightning.ckpt", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
        ("parallel.pth", lambda state, path: torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path)),
        ("old.pth", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
        ("model.safetensors", save_safetensors),
    ],
)
def test_files_of_every_kind_load(name, save, tmp_path):
    source, model = tiny_config().build(), tiny_config().build()
    save(to_original(source.state_dict()), tmp_path / name)
    report = load_checkpoint(model, tmp_path / name)
    assert report.fits
    assert_equal(model.state_dict(), source.state_dict())


def test_a_path_may_be_a_string_and_the_names_ours(tmp_path):
    source, model = tiny_config().build(), tiny_config().build()
    torch.save(source.state_dict(), tmp_path / "ours.pth")
    assert load_checkpoint(model, str(tmp_path / "ours.pth")).format == "deformdetr"
    assert_equal(model.state_dict(), source.state_dict())


def test_state_dict_of_a_detector_is_not_recognized_as_transformers():
    config = tiny_config()
    source, model = config.build(), config.build()
    detector = Detector(source, config.build_criterion(), config.build_postprocess())
    assert load_checkpoint(model, detector.state_dict()).format == "deformdetr"
    assert_equal(model.state_dict(), source.state_dict())


def test_counts_of_trained_batch_norm_are_ignored():
    state = to_original(tiny_config().build().state_dict())
    state["backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(7)
    assert load_checkpoint(tiny_config().build(), state).fits


def test_a_file_with_code_raises_and_is_named(tmp_path):
    path = tmp_path / "path.pth"
    torch.save({"model": to_original(tiny_config().build().state_dict()), "dir": pathlib.PurePosixPath("/")}, path)
    reason = r"path\.pth cannot be read: it holds a pathlib\.(_local\.)?PurePosixPath"
    with pytest.raises(CheckpointError, match=reason) as error:
        load_checkpoint(tiny_config().build(), path)
    # PyTorch's own message advises to run the code.
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_named(share, new, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(to_original(tiny_config().build().state_dict()), path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.pth cannot be read: not a file that torch\.save has written"):
        load_checkpoint(tiny_config().build(), path)


def test_a_truncated_safetensors_file_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_safetensors(to_original(tiny_config().build().state_dict()), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read: not a safetensors file"):
        load_checkpoint(tiny_config().build(), path)


@pytest.mark.parametrize("text", ["", "epoch,loss\n1,2.5\n", "<html>404</html>", "}[(", "K\x01t."])
def test_a_file_of_something_else_raises(text, tmp_path):
    path = tmp_path / "other.pth"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"other\.pth (cannot be read|holds a)"):
        load_checkpoint(tiny_config().build(), path)


def test_errors_distinguish_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_checkpoint(tiny_config().build(), tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a folder; name a file in it"):
        load_checkpoint(tiny_config().build(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
            r"it holds 2 tensors \(conv1\.weight, fc\.bias\)",
        ),
        ({"epoch": 3}, "it holds epoch: int"),
        ({}, "it holds nothing"),
        (
            {"model": {"a": torch.zeros(1)}, "optimizer": {"state": {}}, "lr": 0.1},
            r"it holds model: 1 tensor \(a\); optimizer: a dict of 1 entries; lr: float",
        ),
    ],
)
def test_checkpoints_of_other_networks_raise(content, message):
    with pytest.raises(CheckpointError, match=f"the state dict: not a checkpoint of Deformable DETR.*{message}"):
        load_checkpoint(tiny_config().build(), content)


def test_entries_without_names_raise(tmp_path):
    torch.save({0: torch.zeros(3)}, tmp_path / "numbered.pth")
    with pytest.raises(CheckpointError, match=r"numbered\.pth: not a checkpoint of Deformable DETR.* 1 tensor \(0\)"):
        load_checkpoint(tiny_config().build(), tmp_path / "numbered.pth")


def test_a_tensor_is_not_a_state_dict(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor, not a state dict"):
        load_checkpoint(tiny_config().build(), tmp_path / "tensor.pth")


def test_a_head_under_two_names_with_two_values_raises():
    state = to_original(tiny_config(with_box_refine=True).build().state_dict())
    name = "transformer.decoder.bbox_embed.1.layers.0.bias"
    state[name] = state[name] + 1
    with pytest.raises(
        CheckpointError, match=f"{name} and bbox_embed.1.layers.0.bias are two names of the same tensor"
    ):
        load_checkpoint(tiny_config(with_box_refine=True).build(), state)


def assert_refused(model: nn.Module, state, **options) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, state, **options)
    assert_equal(model.state_dict(), before)
    return str(error.value)


def test_missing_unexpected_and_mismatched_entries_are_listed():
    state = to_original(tiny_config().build().state_dict())
    del state["transformer.encoder.layers.1.norm1.weight"]
    state["ema.decay"] = torch.zeros(1)
    state["query_embed.weight"] = torch.zeros(7, 32)
    model = tiny_config().build()
    message = assert_refused(model, state)
    assert "1 missing from the checkpoint:\n  encoder.layers.1.self_attn_norm.weight" in message
    assert "1 unknown to the model:\n  ema.decay" in message
    assert "queries.embedding.weight: (7, 32) in the checkpoint, (12, 32) in the model" in message
    assert message.endswith("the checkpoint has 7 queries, the model has 12 queries: build it with num_queries=7")


def test_matching_entries_are_loaded_when_not_strict():
    source, model = tiny_config().build(), tiny_config().build()
    state = to_original(source.state_dict())
    del state["transformer.level_embed"]
    state["transformer.level_embed"] = torch.zeros(4, 5)
    before = model.level_embed.detach().clone()
    report = load_checkpoint(model, state, strict=False)
    assert not report.fits
    assert report.mismatched == {"level_embed": ((4, 5), (4, 16))}
    assert torch.equal(model.level_embed, before)
    assert torch.equal(model.neck.levels[0].conv.weight, source.neck.levels[0].conv.weight)


def test_a_long_report_is_cut_short():
    message = assert_refused(
        tiny_config(num_encoder_layers=0).build(), tiny_config(num_encoder_layers=4).build().state_dict()
    )
    assert "  and 44 more" in message
    assert len(message.splitlines()) < 30


@pytest.mark.parametrize(
    ("theirs", "ours", "advice"),
    [
        ({"with_box_refine": True}, {}, "the checkpoint refines boxes, .* build it with with_box_refine=True"),
        ({}, {"with_box_refine": True}, "the checkpoint does not refine boxes, .* build it with with_box_refine=False"),
        ({"two_stage": True}, {}, "the checkpoint is two-stage, the model is not two-stage: .* two_stage=True"),
        ({}, {"num_feature_levels": 1}, "has 4 feature levels, the model has 1 feature levels: .*num_feature_levels=4"),
        ({"num_decoder_layers": 2}, {}, "has 2 decoder layers, .*num_decoder_layers=2"),
        ({"d_model": 32}, {}, "has 32 channels, .*d_model=32"),
        ({"num_classes": 9}, {}, "has 9 classes, .*num_classes=9 or load it with drop_class_head=True"),
    ],
)
@pytest.mark.parametrize("translate", [dict, to_original])
def test_advice_names_the_field_of_another_variant(theirs, ours, advice, translate):
    state = translate(tiny_config(**theirs).build().state_dict())
    message = assert_refused(tiny_config(**ours).build(), state)
    assert len([line for line in message.splitlines() if "build it with" in line]) == 1
    with pytest.raises(CheckpointError, match=advice):
        load_checkpoint(tiny_config(**ours).build(), state)


@variants
def test_class_heads_of_another_dataset_may_be_dropped(variant):
    source, model = tiny_config(num_classes=91, **variant).build(), tiny_config(num_classes=3, **variant).build()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    state = to_original(source.state_dict())
    assert_refused(model, state)
    report = load_checkpoint(model, state, drop_class_head=True)
    assert report.fits
    heads = {name for name in fresh if name.startswith(("class_heads.", "queries.class_head."))}
    assert set(report.dropped) == heads
    assert ("queries.class_head.weight" in heads) == variant.get("two_stage", False)
    assert f"{len(heads)} dropped class heads:" in str(report)
    expected = source.state_dict() | {name: fresh[name] for name in heads}
    assert_equal(model.state_dict(), expected)


def test_dropping_class_heads_allows_no_other_mismatch():
    source, model = tiny_config(num_classes=9, num_queries=7).build(), tiny_config().build()
    message = assert_refused(model, to_original(source.state_dict()), drop_class_head=True)
    assert "num_queries=7" in message
    assert "num_classes" not in message


def test_a_published_model_fine_tunes_on_other_classes():
    state = golden_checkpoint(load_golden("single_scale"))
    model = preset("deformable_detr_r50_single_scale").replace(num_classes=3).build()
    report = load_checkpoint(model, state, drop_class_head=True)
    assert report.dropped == {"class_heads.0.bias": ((91,), (3,)), "class_heads.0.weight": ((91, 256), (3, 256))}
