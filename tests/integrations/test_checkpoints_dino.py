"""Checkpoints of DINO and DN-DETR: the original repositories', detrex's and mmdetection's."""

import pytest
import torch

from checkpoints import assert_equal, random_state, tiny_config
from deformdetr import preset
from deformdetr.config import ContrastiveDenoisingConfig, DenoisingConfig, ResNetConfig
from deformdetr.integrations import (
    CheckpointError,
    convert_checkpoint,
    from_original,
    load_checkpoint,
    recognize,
    save_checkpoint,
    select_classes,
    to_hugging_face,
    to_original,
    translate_state_dict,
)
from foreign_anchor_names import FOREIGN_ANCHOR_NAMES, first_name

ANCHORS = {"with_box_refine": True, "anchor_queries": True}
DINO = ANCHORS | {
    "two_stage": True,
    "query_selection": "mixed",
    "decoder_norm": True,
    "share_heads": True,
    "denoising": ContrastiveDenoisingConfig(),
}
DN = ANCHORS | {"query_scale": True, "denoising": DenoisingConfig()}
PRESETS = {"dino": "dino_r50_4scale", "dn": "dn_deformable_detr_r50"}
LABELS = "denoising.label_embedding.weight"
implementations = pytest.mark.parametrize(("kind", "name"), FOREIGN_ANCHOR_NAMES)


def described(kind, name, **changes):
    """Describe a small model that an implementation can have: only DINO's repository shares heads."""
    fields = DN if kind == "dn" else DINO | {"share_heads": name == "original"}
    return tiny_config(**{"d_model": 32, "backbone": ResNetConfig(name="resnet18")} | fields | changes)


def tiny(kind, **changes):
    return tiny_config(**(DINO if kind == "dino" else DN) | changes)


def common_state(config, rng):
    """Draw a state dict of ours; padding has no label, and mmdetection's necks no biases."""
    state = random_state(config, rng)
    state |= {name: value * 0 for name, value in state.items() if name.startswith("neck.") and "conv.bias" in name}
    if LABELS in state:
        state[LABELS][-1] = 0
    return state


def random_foreign(shapes, kind, name, layers, rng):
    """Draw an implementation's state dict, in which names of one tensor share its memory."""
    firsts = {key: first_name(key, kind, name, layers) for key in shapes}
    drawn = {key: torch.randn(shapes[key], generator=rng) for key in firsts.values()}
    return {key: drawn[first] for key, first in firsts.items()}


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@implementations
def test_names_and_shapes_written_are_those_of_the_implementation(kind, name):
    config = described(kind, name)
    theirs, report = translate_state_dict(config.build().state_dict(), name)
    assert shapes_of(theirs) == FOREIGN_ANCHOR_NAMES[kind, name](config)
    assert recognize(theirs) == name
    assert report.lossless


@pytest.mark.parametrize(("kind", "count"), [("dino", 46_893_182), ("dn", 47_429_154)])
def test_published_sizes_have_the_names_shapes_and_parameters_of_the_original(kind, count):
    config = preset(PRESETS[kind])
    with torch.device("meta"):
        model = config.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    shapes = FOREIGN_ANCHOR_NAMES[kind, "original"](config)
    theirs = to_original({name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()})
    assert shapes_of(theirs) == shapes
    # Frozen norms of the backbone are no parameters.
    firsts = {first_name(name, kind, "original", config.num_decoder_layers) for name in shapes}
    parameters = [name for name in firsts if not ("backbone." in name and (".bn" in name or "downsample.1." in name))]
    assert sum(torch.Size(shapes[name]).numel() for name in parameters) == count


@implementations
def test_checkpoints_of_the_implementation_load_and_come_back(kind, name, rng):
    config = described(kind, name)
    theirs = random_foreign(FOREIGN_ANCHOR_NAMES[kind, name](config), kind, name, config.num_decoder_layers, rng)
    model = config.build()
    report = load_checkpoint(model, theirs)
    assert (report.format, report.fits) == (name, True)
    labels = model.denoising.label_embedding.weight
    assert (labels[-1] == 0).all()
    again, account = translate_state_dict(model.state_dict(), name)
    assert account.lossless
    embedding = next(
        key for key in theirs if key.endswith(("label_enc.weight", "label_encoder.weight", "label_embedding.weight"))
    )
    assert torch.equal(theirs.pop(embedding)[: config.num_classes], again.pop(embedding)[: config.num_classes])
    counts = {key for key in theirs if key.endswith("num_batches_tracked")}
    assert_equal(
        {key: value for key, value in again.items() if key not in counts},
        {key: value for key, value in theirs.items() if key not in counts},
    )


# Names of values whose shapes others share: here, and in DINO's repository, detrex, mmdetection 3 and mmdetection 2.
SAME = [
    (
        "decoder.position.encoding.layers.1.bias",
        "transformer.decoder.ref_point_head.layers.1.bias",
        "transformer.decoder.ref_point_head.layers.1.bias",
        "decoder.ref_point_head.layers.1.bias",
        "bbox_head.transformer.decoder.ref_point_head.2.bias",
    ),
    (
        "decoder.norm.weight",
        "transformer.decoder.norm.weight",
        "transformer.decoder.norm.weight",
        "decoder.norm.weight",
        "bbox_head.transformer.decoder.norm.weight",
    ),
    (
        "queries.memory_norm.bias",
        "transformer.enc_output_norm.bias",
        "transformer.enc_output_norm.bias",
        "memory_trans_norm.bias",
        "bbox_head.transformer.enc_output_norm.bias",
    ),
    (
        "queries.class_head.bias",
        "transformer.enc_out_class_embed.bias",
        "class_embed.3.bias",
        "bbox_head.cls_branches.3.bias",
        "bbox_head.cls_branches.3.bias",
    ),
    (
        "queries.box_head.layers.1.bias",
        "transformer.enc_out_bbox_embed.layers.1.bias",
        "transformer.decoder.bbox_embed.3.layers.1.bias",
        "bbox_head.reg_branches.3.2.bias",
        "bbox_head.reg_branches.3.2.bias",
    ),
    (
        "class_heads.0.bias",
        "transformer.decoder.class_embed.2.bias",
        "class_embed.2.bias",
        "bbox_head.cls_branches.2.bias",
        "bbox_head.cls_branches.2.bias",
    ),
    (
        "decoder.layers.1.self_attn_norm.bias",
        "transformer.decoder.layers.1.norm2.bias",
        "transformer.decoder.layers.1.norms.0.bias",
        "decoder.layers.1.norms.0.bias",
        "bbox_head.transformer.decoder.layers.1.norms.0.bias",
    ),
]


def test_values_of_equal_shape_go_to_the_names_that_mean_the_same(rng):
    state = common_state(described("dino", "original"), rng)
    formats = ("original", "detrex", "mmdetection_3", "mmdetection_2")
    written = {name: translate_state_dict(state, name)[0] for name in formats}
    for ours, *theirs in SAME:
        for name, there in zip(formats, theirs, strict=True):
            assert torch.equal(written[name][there], state[ours]), there
    assert torch.equal(written["detrex"]["label_enc.weight"], state[LABELS][:-1])


@pytest.mark.parametrize("source", ["original", "detrex", "mmdetection_2", "mmdetection_3"])
@pytest.mark.parametrize("target", ["original", "detrex", "mmdetection_2", "mmdetection_3"])
def test_every_format_translates_to_every_other(source, target, rng):
    state = common_state(tiny("dino", share_heads=False), rng)
    theirs, _ = translate_state_dict(state, source)
    translated, report = translate_state_dict(theirs, target)
    assert report.lossless
    assert_equal(translated, translate_state_dict(state, target)[0])


@pytest.mark.parametrize("kind", ["dino", "dn"])
@pytest.mark.parametrize("changes", [{}, {"share_heads": True}, {"denoising": None}, {"masks": True, "d_model": 32}])
def test_round_trip_through_the_original_changes_no_bit(kind, changes, rng):
    config = tiny(kind, **changes)
    state = common_state(config, rng)
    model = config.build()
    assert load_checkpoint(model, to_original(state)).format == "original"
    assert_equal(model.state_dict(), state)


@pytest.mark.parametrize("levels", [1, 3])
def test_dino_with_one_stage_has_its_anchors_in_the_transformer(levels, rng):
    config = tiny("dino", two_stage=False, query_selection="pure", num_feature_levels=levels)
    state = common_state(config, rng)
    if levels == 1:
        with pytest.raises(ValueError, match="embedding of the only level"):
            translate_state_dict(state, "original")
        state["level_embed"] *= 0
    theirs, _ = translate_state_dict(state, "original")
    assert torch.equal(theirs["transformer.refpoint_embed.weight"], state["queries.anchors.weight"])
    assert ("transformer.level_embed" in theirs) == (levels > 1)
    assert_equal(from_original(theirs), state)


def test_rows_that_no_label_has_are_no_loss_and_become_zeros(rng, tmp_path):
    # Of a fine-tuned model: five classes, and the embedding of COCO's.
    state = to_original(common_state(tiny("dino"), rng))
    state["label_enc.weight"] = torch.randn(92, 16, generator=rng)
    torch.save({"model": state}, tmp_path / "dino.pth")
    report = convert_checkpoint(tmp_path / "dino.pth", tmp_path / "ours.pth", "deformdetr")
    assert report.lossless
    assert "rows of the label embedding without a label" in str(report)
    labels = torch.load(tmp_path / "ours.pth", weights_only=True)[LABELS]
    assert torch.equal(labels, torch.cat([state["label_enc.weight"][:5], torch.zeros(1, 16)]))


@pytest.mark.parametrize("kind", ["dino", "dn"])
def test_selected_classes_keep_their_rows_of_heads_and_label_embedding(kind, rng):
    state = common_state(tiny(kind, num_classes=9), rng)
    kept = [7, 0, 4]
    selected = select_classes(state, kept)
    for name, tensor in selected.items():
        if name == LABELS:
            assert torch.equal(tensor, state[name][[*kept, 9]])
        elif name.startswith(("class_heads.", "queries.class_head.")):
            assert torch.equal(tensor, state[name][kept])
        else:
            assert tensor is state[name]
    model = tiny(kind, num_classes=3).build()
    assert load_checkpoint(model, to_original(state), classes=kept).fits
    assert_equal(model.state_dict(), selected)
    # Asked for, it is no reason to refuse.
    _, report = translate_state_dict(to_original(state), "detrex", classes=kept)
    assert [loss.why for loss in report.losses] == ["asked for"]
    assert not report.lossless


@pytest.mark.parametrize("kind", ["dino", "dn"])
def test_class_heads_and_labels_of_another_dataset_may_be_dropped(kind, rng):
    state, model = common_state(tiny(kind, num_classes=91), rng), tiny(kind, num_classes=3).build()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"num_classes=91 or load it with drop_class_head=True"):
        load_checkpoint(model, to_original(state))
    report = load_checkpoint(model, to_original(state), drop_class_head=True)
    assert report.fits
    assert LABELS in report.dropped
    assert_equal(model.state_dict(), state | {name: fresh[name] for name in report.dropped})


def untied(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def test_equal_heads_do_not_tell_whether_they_are_shared(rng):
    shared = common_state(tiny("dino"), rng)
    theirs = untied(to_original(shared))
    with pytest.raises(ValueError, match=r"does not tell .* share_heads=True or share_heads=False \(--share_heads\)"):
        translate_state_dict(theirs, "deformdetr")
    assert_equal(translate_state_dict(theirs, "deformdetr", share_heads=True)[0], shared)
    apart, _ = translate_state_dict(theirs, "deformdetr", share_heads=False)
    assert "class_heads.2.bias" in apart
    assert_equal(from_original(theirs, share_heads=True), shared)
    # One memory of several names is one tensor.
    assert_equal(from_original(to_original(shared)), shared)


def test_the_model_decides_whether_equal_heads_are_shared(rng):
    theirs = untied(to_original(common_state(tiny("dino"), rng)))
    for share in (True, False):
        model = tiny("dino", share_heads=share).build()
        assert load_checkpoint(model, theirs).fits
        for head in model.class_heads:
            assert torch.equal(head.bias, theirs["class_embed.0.bias"])


def test_different_heads_are_never_shared(rng):
    theirs = to_original(common_state(tiny("dino", share_heads=False), rng))
    with pytest.raises(ValueError, match="share_heads=True, but decoder layers have different heads"):
        translate_state_dict(theirs, "deformdetr", share_heads=True)
    with pytest.raises(CheckpointError, match="build it with share_heads=False"):
        load_checkpoint(tiny("dino").build(), theirs)


@pytest.mark.parametrize(
    ("theirs", "ours", "advice"),
    [
        (DINO, {"with_box_refine": True}, {"two_stage=True", "query_selection='mixed'", "anchor_queries=True"}),
        (DINO, DINO | {"decoder_norm": False}, {"decoder_norm=True"}),
        (DINO, DINO | {"denoising": None}, {"denoising=ContrastiveDenoisingConfig()"}),
        (DINO, DINO | {"num_queries": 9}, {"num_queries=12"}),
        (DN, DN | {"query_scale": False}, {"query_scale=True"}),
        (DN, DN | {"denoising": ContrastiveDenoisingConfig()}, {"denoising=DenoisingConfig()"}),
    ],
)
@pytest.mark.parametrize("translate", [dict, to_original])
def test_advice_names_the_fields_that_differ(theirs, ours, advice, translate):
    state = translate(tiny_config(**theirs).build().state_dict())
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tiny_config(**ours).build(), state)
    lines = str(error.value).splitlines()
    assert {line.rpartition("build it with ")[2] for line in lines if "build it with" in line} == advice


def test_models_that_a_format_lacks_raise_with_the_field(tmp_path):
    for changes, name, field in (
        ({}, "original", "query_scale=True"),
        ({"decoder_norm": True}, "detrex", "two_stage=True"),
        ({"decoder_norm": True}, "mmdetection_3", "two_stage=True"),
    ):
        model = tiny_config(**ANCHORS | changes).build()
        with pytest.raises(ValueError, match=f"{name} has no such model: all of this kind have {field}"):
            save_checkpoint(model, tmp_path / "model.pth", name)
    model = tiny("dino").build()
    with pytest.raises(ValueError, match="no format 'hugging_face_4' for dino; there are deformdetr, original, mmd"):
        save_checkpoint(model, tmp_path / "model.pth", "hugging_face_4")
    with pytest.raises(ValueError, match="no format 'hugging_face_5' for dino"):
        to_hugging_face(model.state_dict())
    assert list(tmp_path.iterdir()) == []
