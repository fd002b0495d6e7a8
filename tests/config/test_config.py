"""Configs: validation, files, schema, and the parts that they build."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from checkpoints import VARIANTS, tiny_config
from deformdetr import PRESETS, DeformableDETRConfig, preset, preset_names
from deformdetr.config import (
    Config,
    ConvBackboneConfig,
    DATConfig,
    DeformConvConfig,
    DETRConfig,
    FocalCriterionConfig,
    LearnedPositionConfig,
    ResNetConfig,
    SinePositionConfig,
    SoftmaxCriterionConfig,
    TimmConfig,
    load_config,
    save_config,
)
from deformdetr.losses import SetCriterion
from deformdetr.models import DeformableDETR
from deformdetr.nn import DeformConv2d, FeatureBackbone, LearnedQueries, ProposalQueries

ODD = tiny_config(
    position=LearnedPositionConfig(max_size=7),
    criterion=FocalCriterionConfig(focal_gamma=1.5, loss_giou=0),
    two_stage=True,
    top_k=9,
    dec_n_points=(3, 6, 3, 1),
)
CONFIGS = {
    **PRESETS,
    "odd": ODD,
    "deformable": tiny_config(backbone=ResNetConfig(deform_conv=DeformConvConfig(version=1, layers=(4,)))),
    "dat": tiny_config(backbone=DATConfig(name="dat_base", image_size=384, window_size=12, drop_path=0.5)),
    "timm": tiny_config(
        backbone=TimmConfig(
            name="swin_tiny_patch4_window7_224",
            frozen=("patch_embed",),
            options={"strict_img_size": False, "drop_path_rate": 0.25, "window_size": 4},
        )
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".JSON"])
def test_a_config_round_trips_through_files(config, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    save_config(config, path)
    assert load_config(path, type(config)) == config
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_round_trips_through_values_and_json(config):
    assert type(config).model_validate(config.model_dump()) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_saving_replaces_a_file_and_failing_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "model.json"
    save_config(tiny_config(), path)
    save_config(ODD, path)
    assert load_config(path, DeformableDETRConfig) == ODD

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match=r"model\.json cannot be written: disk full"):
        save_config(tiny_config(), path)
    monkeypatch.undo()
    assert load_config(path, DeformableDETRConfig) == ODD
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]


def test_missing_fields_of_a_file_have_their_defaults(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("# nothing but a comment\n")
    assert load_config(path, DeformableDETRConfig) == DeformableDETRConfig()
    path.write_text("backbone: {kind: conv, channels: [8, 8, 8, 8]}\nnum_classes: 3\n")
    config = load_config(path, DeformableDETRConfig)
    assert config == DeformableDETRConfig(num_classes=3, backbone=ConvBackboneConfig(channels=(8, 8, 8, 8)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_classes: [", r"a\.yaml is not valid YAML: (.*\n)*.*line 1"),
        ("num_clases: 3", r"a\.yaml: 1 validation error .*\n *num_clases\n *Extra inputs are not permitted"),
        ("d_model: 100", r"a\.yaml: .*\n.*d_model \(100\) must be divisible by n_heads \(8\)"),
    ],
)
def test_an_invalid_file_is_refused_by_name(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "a.yaml", DeformableDETRConfig)


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path):
    for name in ("none.yaml", "none.json"):
        with pytest.raises(FileNotFoundError, match=name):
            load_config(tmp_path / name, DeformableDETRConfig)
    with pytest.raises(ValueError, match=r"must end in \.yaml, \.yml or \.json"):
        save_config(tiny_config(), tmp_path / "model.txt")
    assert list(tmp_path.iterdir()) == []


def test_without_pyyaml_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "model.yaml").write_text("num_classes: 3")
    monkeypatch.setitem(sys.modules, "yaml", None)
    for use in (lambda path: save_config(tiny_config(), path), lambda path: load_config(path, DeformableDETRConfig)):
        with pytest.raises(ImportError, match=r"needs pyyaml: pip install pyyaml, or use a \.json file"):
            use(tmp_path / "model.yaml")
    save_config(tiny_config(), tmp_path / "model.json")


def test_schema_describes_every_field_and_accepts_nothing_else():
    schema = DeformableDETRConfig.model_json_schema()
    assert set(schema["properties"]) == set(DeformableDETRConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["backbone"]["discriminator"]["propertyName"] == "kind"
    assert schema["properties"]["num_feature_levels"]["maximum"] == 6
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DeformableDETRConfig, {"num_query": 3}),
        (DeformableDETRConfig, {"backbone": {"kind": "resnet", "depth": 50}}),
        (DeformableDETRConfig, {"backbone": {"kind": "vgg"}}),
        (DeformableDETRConfig, {"position": {"kind": "conv"}}),
        (ResNetConfig, {"name": "resnet20"}),
        (FocalCriterionConfig, {"loss_mask": 1.0}),
        (DETRConfig, {"criterion": {"kind": "focal", "no_object_weight": 0.1}}),
        (DETRConfig, {"criterion": {"kind": "hinge"}}),
        (TimmConfig, {"name": "hf-hub:somebody/something"}),
        (TimmConfig, {"name": "resnet18", "options": {"norm_layer": "LayerNorm"}}),
        (ResNetConfig, {"deform_conv": {"version": 3}}),
        (ResNetConfig, {"deform_conv": {"layers": [5]}}),
        (DATConfig, {"name": "dat_large"}),
    ],
)
def test_unknown_fields_and_kinds_are_refused(kind, fields):
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (DeformableDETRConfig, {"d_model": 100}, r"d_model \(100\) must be divisible by n_heads \(8\)"),
        (DeformableDETRConfig, {"d_model": 40}, r"d_model \(40\) must be divisible by norm_groups \(32\)"),
        (
            DeformableDETRConfig,
            {"d_model": 6, "n_heads": 2, "norm_groups": 3},
            r"d_model \(6\) must be divisible by 4",
        ),
        (DeformableDETRConfig, {"num_queries": 0}, "greater than or equal to 1"),
        (
            DeformableDETRConfig,
            {"enc_n_points": (3, 6, 3)},
            r"enc_n_points \(\(3, 6, 3\)\) must have a number for each of num_feature_levels \(4\)",
        ),
        (DeformableDETRConfig, {"dec_n_points": (3, 6, 0, 1)}, "greater than or equal to 1"),
        (ResNetConfig, {"name": "resnet34", "deform_conv": {}}, "resnet34 has no bottlenecks"),
        (TimmConfig, {"name": "resnet18", "options": {"pretrained": True}}, "options cannot set pretrained"),
        (DeformableDETRConfig, {"num_classes": 0}, "greater than or equal to 1"),
        (DeformableDETRConfig, {"num_feature_levels": 7}, "less than or equal to 6"),
        (DeformableDETRConfig, {"num_decoder_layers": 0}, "greater than or equal to 1"),
        (DeformableDETRConfig, {"dropout": 1.0}, "less than 1"),
        (ResNetConfig, {"name": "resnet18", "dilation": True}, "resnet18 has no dilated form"),
        (ResNetConfig, {"norm": "group", "weights": "DEFAULT"}, r"weights \(DEFAULT\) .* do not fit norm='group'"),
        (ResNetConfig, {"trainable_layers": 6}, "less than or equal to 5"),
        (ConvBackboneConfig, {"channels": (8, 8, 12, 8)}, r"multiples of 8, got \(8, 8, 12, 8\)"),
        (DATConfig, {"image_size": 200}, "multiple of 32"),
        (DATConfig, {"drop_path": 1.5}, "less than or equal to 1"),
        (SinePositionConfig, {"temperature": 0}, "greater than 0"),
        (FocalCriterionConfig, {"focal_alpha": 1.5}, "less than or equal to 1"),
        (FocalCriterionConfig, {"cost_giou": -1}, "greater than or equal to 0"),
    ],
)
def test_values_out_of_range_are_refused_with_their_numbers(kind, fields, message):
    with pytest.raises(ValidationError, match=message):
        kind(**fields)


def test_replacing_changes_a_copy_and_validates_it():
    config = tiny_config()
    changed = config.replace(num_classes=9, backbone={"kind": "resnet", "name": "resnet18"})
    assert (config.num_classes, changed.num_classes) == (5, 9)
    assert changed.backbone == ResNetConfig(name="resnet18")
    assert changed.replace(num_classes=5, backbone=config.backbone) == config
    with pytest.raises(ValidationError, match=r"d_model \(16\) must be divisible by n_heads \(3\)"):
        config.replace(n_heads=3)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config.replace(heads=3)


def test_configs_are_immutable_and_hashable():
    with pytest.raises(ValidationError, match="frozen"):
        tiny_config().num_classes = 4
    assert len({tiny_config(), tiny_config(), ODD}) == 2


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_all_of_its_parts(name):
    config = preset(name)
    assert isinstance(config, Config)
    with torch.device("meta"):
        model = config.build()
    assert isinstance(config.build_criterion(), SetCriterion)
    assert callable(config.build_postprocess())
    if name.startswith("deformable_detr") or name == "demo":
        assert isinstance(model, DeformableDETR)
        assert isinstance(model.queries, ProposalQueries if config.two_stage else LearnedQueries)
        assert len(model.class_heads) == (config.num_decoder_layers if config.with_box_refine else 1)
        assert len(model.neck.levels) == config.num_feature_levels


def test_the_error_for_an_unknown_preset_lists_the_known_ones():
    assert preset_names() == list(PRESETS)
    with pytest.raises(ValueError, match=r"no preset 'deformable_detr_r101'; there are .*r50_two_stage"):
        preset("deformable_detr_r101")


def test_the_criterion_config_sets_weights_and_costs():
    config = FocalCriterionConfig(cost_class=1, cost_bbox=2, cost_giou=3, loss_class=4, loss_bbox=5, loss_giou=6)
    criterion = config.build()
    assert criterion.weights == {"loss_ce": 4, "loss_bbox": 5, "loss_giou": 6}
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (1, 2, 3)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_initial_boxes_keep_the_centers_of_their_references(variant):
    model = tiny_config(**variant).build()
    biases = [head.layers[-1].bias.tolist() for head in model.decoder.box_heads]
    first = 0.0 if variant.get("two_stage") else -2.0
    assert biases[0] == [0, 0, first, first]
    assert all(bias == [0, 0, 0, 0] for bias in biases[1:])
    assert all(not head.layers[-1].weight.any() for head in model.decoder.box_heads)


def test_points_of_every_level_reach_the_layers():
    model = tiny_config(enc_n_points=(1, 2, 3, 4), dec_n_points=(3, 6, 3, 1)).build()
    assert [layer.self_attn.n_points for layer in model.encoder.layers] == [(1, 2, 3, 4)] * 2
    assert [layer.cross_attn.n_points for layer in model.decoder.layers] == [(3, 6, 3, 1)] * 3
    assert tiny_config(enc_n_points=3).build().encoder.layers[0].self_attn.n_points == 3


def test_methods_of_sampling_reach_the_layers():
    model = tiny_config(dec_method="discrete").build()
    assert [layer.self_attn.method for layer in model.encoder.layers] == ["bilinear"] * 2
    assert [layer.cross_attn.method for layer in model.decoder.layers] == ["discrete"] * 3
    assert tiny_config(enc_method="discrete").build().encoder.layers[0].self_attn.method == "discrete"
    with pytest.raises(ValidationError, match="'bilinear' or 'discrete'"):
        tiny_config(enc_method="nearest")


@pytest.mark.parametrize(("version", "layers", "count"), [(2, (2, 3, 4), 13), (1, (4,), 3)])
def test_deformable_convolutions_are_in_the_configured_stages(version, layers, count):
    described = DeformConvConfig(version=version, layers=layers, offset_groups=4)
    with torch.device("meta"):
        backbone = ResNetConfig(deform_conv=described).build(out_layers=(4,))
    found = {name: module for name, module in backbone.named_modules() if isinstance(module, DeformConv2d)}
    assert {name.partition(".")[0] for name in found} == {f"layer{layer}" for layer in layers}
    assert len(found) == count
    assert {(module.version, module.offset_groups) for module in found.values()} == {(version, 4)}


def test_the_kind_of_a_detr_criterion_defaults_to_softmax():
    config = DETRConfig(criterion={"loss_class": 3})
    assert config.criterion == SoftmaxCriterionConfig(loss_class=3)
    assert config.replace(criterion={"kind": "focal", "loss_class": 3}).criterion == FocalCriterionConfig(loss_class=3)


@pytest.mark.parametrize("kind", [tiny_config, lambda: DETRConfig(d_model=16, n_heads=2, d_ffn=24)])
def test_a_given_backbone_replaces_the_configured_one(kind):
    backbone = FeatureBackbone(torch.nn.Sequential(), channels=(8,), strides=(32,))
    model = kind().build(backbone=backbone)
    assert model.backbone is backbone


@pytest.mark.slow
def test_wrong_fields_of_replace_fail_a_type_check(tmp_path: Path) -> None:
    lines = {
        "DeformableDETRConfig().replace(num_classes=3, two_stage=True)": None,
        "DeformableDETRConfig().replace(num_clases=3)": "num_clases",
        "preset('deformable_detr_r50').replace(with_box_refine=True)": None,
        "preset('detr_r50').replace(two_stage=True)": "two_stage",
        "preset(str()).replace(num_classes=3)": None,
        "TrainConfig().replace(epoch=3)": "epoch",
        # Configs with required fields take any name, and check them when they run.
        "DataConfig.model_validate({}).replace(num_workers=3)": None,
    }
    source = tmp_path / "uses.py"
    imports = (
        "from deformdetr import DeformableDETRConfig, preset; "
        "from deformdetr.data import DataConfig; from deformdetr.engine import TrainConfig"
    )
    source.write_text("\n".join([imports, *lines]) + "\n")
    # In its own process, because mypy raises Python's limit of recursion.
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    process = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(source)], capture_output=True, text=True, check=False
    )
    found = process.stdout + process.stderr
    errors = {int(line.split(":")[1]): line for line in found.splitlines() if ": error:" in line}
    expected = {number: name for number, name in enumerate(lines.values(), start=2) if name}
    assert errors.keys() == expected.keys(), found
    for number, name in expected.items():
        assert f'Unexpected keyword argument "{name}"' in errors[number]


@pytest.mark.parametrize("kind", [ResNetConfig, DATConfig, partial(TimmConfig, name="resnet18")])
def test_weights_may_be_paths_which_are_kept_as_text(kind):
    assert kind(weights=Path("a", "b.pth")) == kind(weights=str(Path("a", "b.pth")))
