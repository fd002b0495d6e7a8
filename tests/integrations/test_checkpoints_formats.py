"""Every format in both directions: names and shapes, values, and what a format has no place for."""

import random
import re

import pytest
import torch

from checkpoints import VARIANTS, assert_equal, random_state, tiny_config, tiny_detr_config
from deformdetr import preset
from deformdetr.config import LearnedPositionConfig, ResNetConfig
from deformdetr.integrations import (
    CheckpointError,
    from_original,
    load_checkpoint,
    recognize,
    to_original,
    translate_state_dict,
)
from foreign_names import FOREIGN_NAMES

FORMATS = ("original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex")
DETR_FORMATS = ("original", "hugging_face_4", "hugging_face_5")
TINY_DETR = tiny_detr_config(num_decoder_layers=2, num_queries=100)
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
formats = pytest.mark.parametrize("name", FORMATS)
foreign = pytest.mark.parametrize("name", FOREIGN_NAMES)


def common_state(config, rng):
    """Draw every parameter and statistic, but for the neck's biases, which not every format has."""
    state = random_state(config, rng)
    state |= {name: torch.zeros(config.d_model) for name in state if re.fullmatch(r"neck\..*conv\.bias", name)}
    if not config.with_box_refine:
        # Elsewhere the encoder has the decoder's heads then.
        for ours, theirs in (("queries.class_head", "class_heads.0"), ("queries.box_head", "decoder.box_heads.0")):
            state |= {name: state[name.replace(ours, theirs)] for name in state if name.startswith(ours)}
    return state


def small_resnet(**changes):
    return tiny_config(**{"d_model": 32, "backbone": ResNetConfig(name="resnet18")} | changes)


@variants
@formats
def test_round_trip_changes_no_bit(variant, name, rng):
    state = common_state(tiny_config(**variant), rng)
    theirs, there = translate_state_dict(state, name)
    assert recognize(theirs) == name
    ours, back = translate_state_dict(theirs, "deformdetr")
    assert_equal(ours, state)
    assert (there.source, there.target, back.source, back.target) == ("deformdetr", name, name, "deformdetr")
    assert there.lossless
    assert back.losses == []
    assert (there.read, there.written) == (len(state), len(theirs))


@pytest.mark.parametrize("name", DETR_FORMATS)
def test_round_trip_of_detr_changes_no_bit(name):
    state = TINY_DETR.build().state_dict()
    theirs, there = translate_state_dict(state, name)
    assert recognize(theirs) == name
    assert "16 channels, 24 channels in its feed-forward layers, 5 classes" in there.model
    ours, back = translate_state_dict(theirs, "deformdetr")
    assert_equal(ours, state)
    assert there.losses == back.losses == []


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_every_format_translates_to_every_other(source, target, rng):
    state = common_state(tiny_config(with_box_refine=True, two_stage=True), rng)
    theirs, _ = translate_state_dict(state, source)
    expected, _ = translate_state_dict(state, target)
    translated, report = translate_state_dict(theirs, target)
    assert_equal(translated, expected)
    assert report.lossless


@variants
@foreign
def test_names_and_shapes_written_are_those_of_the_implementation(variant, name):
    config = small_resnet(**variant)
    theirs, _ = translate_state_dict(config.build().state_dict(), name, allow_loss=True)
    assert {key: tuple(value.shape) for key, value in theirs.items()} == FOREIGN_NAMES[name](config)


@foreign
@pytest.mark.parametrize("published", ["deformable_detr_r50_single_scale", "deformable_detr_r50_two_stage"])
def test_published_sizes_have_the_names_and_shapes_of_the_implementation(name, published):
    config = preset(published)
    with torch.device("meta"):
        model = config.build()
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    theirs, _ = translate_state_dict(to_original(state), name)
    assert {key: tuple(value.shape) for key, value in theirs.items()} == FOREIGN_NAMES[name](config)


@variants
@foreign
def test_checkpoints_of_the_implementation_load(variant, name, rng):
    config = small_resnet(**variant)
    theirs = {key: torch.randn(shape, generator=rng) for key, shape in FOREIGN_NAMES[name](config).items()}
    layers = config.num_decoder_layers
    for key in theirs:
        # Second names, and heads that all layers share.
        source = key.removeprefix("transformer.decoder.") if "_embed." in key else key
        if not config.with_box_refine:
            for heads in ("bbox_embed", "class_embed", "bbox_head.cls_branches", "bbox_head.reg_branches"):
                for layer in range(layers + 1):
                    source = source.replace(f"{heads}.{layer}.", f"{heads}.0.")
        theirs[key] = theirs[source]
    model = config.build()
    report = load_checkpoint(model, theirs)
    assert (report.format, report.fits) == (name, True)
    assert ("0.00001" in str(report)) == (name == "detrex")
    again, _ = translate_state_dict(model.state_dict(), name)
    again = {key: value for key, value in again.items() if not key.endswith("num_batches_tracked")}
    assert_equal(again, {key: theirs[key] for key in again})


def untrained(config, name):
    """Return what an implementation saves before training: equal heads for every layer, each its own tensor."""
    state = config.build().state_dict()
    firsts = {"queries.class_head": "class_heads.0", "queries.box_head": "decoder.box_heads.0"}
    for part in state:
        first = re.sub(r"^(class_heads|decoder\.box_heads)\.\d+", r"\1.0", part)
        for ours, heads in firsts.items():
            first = first.replace(ours, heads)
        state[part] = state[first]
    theirs, _ = translate_state_dict(state, name)
    return {key: tensor.clone() for key, tensor in theirs.items()}, state


@variants
@formats
def test_untrained_checkpoints_load_into_their_model(variant, name):
    config = tiny_config(**variant)
    theirs, state = untrained(config, name)
    model = config.build()
    assert load_checkpoint(model, theirs).fits
    assert_equal(model.state_dict(), state)


@pytest.mark.parametrize("name", ["mmdetection_2", "mmdetection_3"])
@pytest.mark.parametrize("variant", ["two_stage", "two_stage_without_refinement"])
def test_equal_heads_of_mmdetection_are_converted_with_share_heads(variant, name):
    theirs, state = untrained(tiny_config(**VARIANTS[variant]), name)
    with pytest.raises(ValueError, match="does not tell whether the layers share them"):
        translate_state_dict(theirs, "original")
    share = not VARIANTS[variant].get("with_box_refine", False)
    translated, _ = translate_state_dict(theirs, "original", share_heads=share)
    assert_equal(translated, to_original(state))


def test_different_and_identical_heads_of_mmdetection_do_not_need_share_heads(rng):
    for variant in ("two_stage", "multi_scale"):
        state = common_state(tiny_config(**VARIANTS[variant]), rng)
        theirs, _ = translate_state_dict(state, "mmdetection_3")
        assert_equal(translate_state_dict(theirs, "deformdetr")[0], state)


# Names of the transformer whose shapes others share: the original's, mmdetection 3's, and mmdetection 2's and detrex's.
SAME_IN_TRANSFORMER = [
    ("encoder.layers.1.norm1.weight", "encoder.layers.1.norms.0.weight", "encoder.layers.1.norms.0.weight"),
    ("encoder.layers.1.norm2.weight", "encoder.layers.1.norms.1.weight", "encoder.layers.1.norms.1.weight"),
    ("decoder.layers.1.norm1.bias", "decoder.layers.1.norms.1.bias", "decoder.layers.1.norms.1.bias"),
    ("decoder.layers.1.norm2.bias", "decoder.layers.1.norms.0.bias", "decoder.layers.1.norms.0.bias"),
    ("decoder.layers.1.norm3.bias", "decoder.layers.1.norms.2.bias", "decoder.layers.1.norms.2.bias"),
    (
        "encoder.layers.0.self_attn.value_proj.weight",
        "encoder.layers.0.self_attn.value_proj.weight",
        "encoder.layers.0.attentions.0.value_proj.weight",
    ),
    (
        "decoder.layers.0.cross_attn.value_proj.weight",
        "decoder.layers.0.cross_attn.value_proj.weight",
        "decoder.layers.0.attentions.1.value_proj.weight",
    ),
    (
        "decoder.layers.0.self_attn.out_proj.weight",
        "decoder.layers.0.self_attn.attn.out_proj.weight",
        "decoder.layers.0.attentions.0.attn.out_proj.weight",
    ),
    ("enc_output.weight", "memory_trans_fc.weight", "enc_output.weight"),
    ("enc_output_norm.weight", "memory_trans_norm.weight", "enc_output_norm.weight"),
    ("pos_trans_norm.weight", "pos_trans_norm.weight", "pos_trans_norm.weight"),
]
# The same for the rest: in the original, in either mmdetection, and in detrex.
SAME_AROUND_IT = [
    ("input_proj.0.1.weight", "neck.convs.0.gn.weight", "neck.convs.0.norm.weight"),
    ("input_proj.2.1.bias", "neck.convs.2.gn.bias", "neck.convs.2.norm.bias"),
    ("input_proj.3.1.bias", "neck.extra_convs.0.gn.bias", "neck.extra_convs.0.norm.bias"),
    ("class_embed.2.bias", "bbox_head.cls_branches.2.bias", "class_embed.2.bias"),
    ("class_embed.3.bias", "bbox_head.cls_branches.3.bias", "transformer.decoder.class_embed.3.bias"),
    ("bbox_embed.3.layers.0.bias", "bbox_head.reg_branches.3.0.bias", "transformer.decoder.bbox_embed.3.layers.0.bias"),
    ("bbox_embed.1.layers.1.bias", "bbox_head.reg_branches.1.2.bias", "bbox_embed.1.layers.1.bias"),
    ("backbone.0.body.bn1.bias", "backbone.bn1.bias", "backbone.stem.conv1.norm.bias"),
    (
        "backbone.0.body.layer2.0.downsample.1.bias",
        "backbone.layer2.0.downsample.1.bias",
        "backbone.res3.0.shortcut.norm.bias",
    ),
    (
        "backbone.0.body.layer4.1.bn2.running_mean",
        "backbone.layer4.1.bn2.running_mean",
        "backbone.res5.1.conv2.norm.running_mean",
    ),
    (
        "backbone.0.body.layer1.0.bn1.running_var",
        "backbone.layer1.0.bn1.running_var",
        "backbone.res2.0.conv1.norm.running_var",
    ),
    ("backbone.0.body.layer1.1.conv2.weight", "backbone.layer1.1.conv2.weight", "backbone.res2.1.conv2.weight"),
]


def test_values_of_equal_shape_go_to_the_names_that_mean_the_same(rng):
    config = small_resnet(with_box_refine=True, two_stage=True)
    original = to_original(common_state(config, rng))
    version_3, version_2, detrex = (
        translate_state_dict(original, name)[0] for name in ("mmdetection_3", "mmdetection_2", "detrex")
    )
    for official, newer, older in SAME_IN_TRANSFORMER:
        expected = original[f"transformer.{official}"]
        assert torch.equal(version_3[newer], expected), newer
        assert torch.equal(version_2[f"bbox_head.transformer.{older}"], expected), older
        assert torch.equal(detrex[f"transformer.{older}"], expected), older
    for official, in_mmdetection, in_detrex in SAME_AROUND_IT:
        assert torch.equal(version_3[in_mmdetection], original[official]), in_mmdetection
        assert torch.equal(version_2[in_mmdetection], original[official]), in_mmdetection
        assert torch.equal(detrex[in_detrex], original[official]), in_detrex


def test_biases_that_mmdetection_lacks_are_reported_with_their_size(rng):
    state = common_state(small_resnet(), rng)
    state["neck.levels.1.conv.bias"][3] = -0.75
    with pytest.raises(
        ValueError, match=r"would lose\n  biases of the neck.*4 entries, largest value 0\.75: neck\.lev"
    ):
        translate_state_dict(to_original(state), "mmdetection_3")
    theirs, report = translate_state_dict(to_original(state), "mmdetection_3", allow_loss=True)
    assert not report.lossless
    (loss,) = report.losses
    assert loss.largest == 0.75
    assert loss.names == [f"neck.levels.{level}.conv.bias" for level in range(4)]
    assert "4 entries, largest value 0.75" in str(report)
    assert [name for name in theirs if "conv.bias" in name and "neck" in name] == []
    back, _ = translate_state_dict(theirs, "deformdetr", share_heads=True)
    assert back["neck.levels.1.conv.bias"].abs().max() == 0


def test_biases_that_an_mmdetection_neck_has_are_loaded(rng):
    config = small_resnet()
    theirs, _ = translate_state_dict(common_state(config, rng), "mmdetection_3")
    theirs["neck.convs.0.conv.bias"] = torch.full((32,), 0.5)
    model = config.build()
    load_checkpoint(model, theirs)
    assert (model.neck.levels[0].conv.bias == 0.5).all()
    assert (model.neck.levels[1].conv.bias == 0).all()


@formats
def test_separate_encoder_heads_are_reported_as_a_loss(name):
    state = tiny_config(two_stage=True).build().state_dict()
    state["queries.class_head.bias"] = state["class_heads.0.bias"] + 0.5
    state["queries.class_head.weight"] = state["class_heads.0.weight"]
    for part, tensor in list(state.items()):
        if part.startswith("decoder.box_heads.0."):
            state[part.replace("decoder.box_heads.0", "queries.box_head")] = tensor
    with pytest.raises(
        ValueError, match=r"difference of the encoder's heads.*1 entries, .*0\.5: queries\.class_head\.b"
    ):
        translate_state_dict(state, name)
    _, report = translate_state_dict(state, name, allow_loss=True)
    losses = [loss for loss in report.losses if loss.largest]
    assert [(loss.names, loss.largest) for loss in losses] == [(["queries.class_head.bias"], 0.5)]


def test_entries_without_a_counterpart_are_dropped_and_listed():
    state = to_original(tiny_config().build().state_dict()) | {"ema.decay": torch.tensor(0.9)}
    with pytest.raises(ValueError, match=r"entries without a counterpart, 1 entries, largest value 0\.9: ema\.decay"):
        translate_state_dict(state, "detrex")
    theirs, report = translate_state_dict(state, "detrex", allow_loss=True)
    assert "ema.decay" not in theirs
    assert ["ema.decay"] in [loss.names for loss in report.losses]
    assert not report.lossless


def test_only_the_original_format_has_learned_positions():
    config = tiny_config(position=LearnedPositionConfig(max_size=4))
    state = config.build().state_dict()
    original = to_original(state)
    assert torch.equal(original["backbone.1.row_embed.weight"], state["position.row_embed.weight"])
    assert_equal(from_original(original), state)
    _, report = translate_state_dict(state, "mmdetection_3", allow_loss=True)
    assert ["position.col_embed.weight", "position.row_embed.weight"] in [loss.names for loss in report.losses]


def test_counts_of_batches_are_written_where_the_norms_have_them():
    state = small_resnet().build().state_dict()
    counted = [name for name in translate_state_dict(state, "mmdetection_2")[0] if name.endswith("batches_tracked")]
    assert len(counted) == 20
    trained = small_resnet(backbone=ResNetConfig(name="resnet18", norm="batch")).build().state_dict()
    assert len([name for name in trained if name.endswith("batches_tracked")]) == 20
    for name in ("original", "detrex", "hugging_face_5"):
        assert not [key for key in translate_state_dict(trained, name)[0] if key.endswith("batches_tracked")]
    assert translate_state_dict(trained, "deformdetr")[0].keys() == trained.keys()


def test_only_formats_of_transformers_have_its_backbone():
    state = small_resnet().build().state_dict()
    with pytest.raises(ValueError, match="original has no ResNet of its own"):
        translate_state_dict(state, "original", backbone="resnet")


@pytest.mark.parametrize("name", ["mmdetection_2", "mmdetection_3", "detrex"])
def test_error_lists_the_formats_with_detr(name):
    state = TINY_DETR.build().state_dict()
    with pytest.raises(
        ValueError, match=f"no format '{name}' for detr; there are deformdetr, original, hugging_face_5"
    ):
        translate_state_dict(state, name)


def test_two_entries_with_one_translated_name_raise():
    state = tiny_config().build().state_dict()
    theirs, _ = translate_state_dict(state, "hugging_face_5")
    theirs["model.backbone.conv_encoder.model.stem.0.weight"] = theirs["model.backbone.model.stem.0.weight"]
    with pytest.raises(ValueError, match=r"both names of backbone\.stem\.0\.weight"):
        translate_state_dict(theirs, "deformdetr")


@formats
def test_weights_that_are_not_numbers_are_translated_like_others(name):
    for variant in VARIANTS.values():
        config = tiny_config(**variant)
        state = {key: torch.full_like(value, torch.nan) for key, value in config.build().state_dict().items()}
        theirs, report = translate_state_dict(state, name, allow_loss=True)
        assert not any(loss.what.startswith("difference") for loss in report.losses)
        back, _ = translate_state_dict(theirs, "deformdetr", share_heads=not variant.get("with_box_refine"))
        assert back.keys() == state.keys()


def test_the_steps_are_counted():
    state = tiny_config(with_box_refine=True).build().state_dict()
    _, report = translate_state_dict(state, "hugging_face_5")
    steps = {step.what: (step.before, step.after) for step in report.steps}
    attention = 3 * 2
    assert steps["projections of queries, keys and values split"] == (len(state), len(state) + 2 * attention)
    assert steps["second names of heads added"] == (len(state) + 12, len(state) + 12 + 18)
    assert f"{len(state)} entries read, {len(state) + 30} written" in str(report)
    assert "nothing lost" in str(report)


@pytest.mark.parametrize("name", ["deformdetr", *FORMATS])
def test_entries_of_impossible_shapes_raise_with_a_message(name, seed):
    draw = random.Random(seed)
    config = tiny_config(two_stage=True, with_box_refine=draw.random() < 0.5)
    theirs, _ = translate_state_dict(config.build().state_dict(), name, allow_loss=True)
    odd = (torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 3), torch.zeros(3, 2, 2), torch.tensor([True]))
    model = config.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(15):
        damaged = dict(theirs)
        for key in draw.sample(sorted(theirs), draw.choice([1, 3, 30])):
            damaged[key] = draw.choice(odd)
        with pytest.raises(CheckpointError):
            load_checkpoint(model, damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(model, damaged, classes=[0, 2])
    assert_equal(model.state_dict(), before)
