import sys
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from checkpoints import tiny_config
from dat_names import to_original
from deformdetr.config import DATConfig, with_backbone_weights
from deformdetr.engine import enable_gradient_checkpointing
from deformdetr.nn import DATBackbone, DeformableAttention2d, _dat_backbone
from goldens import fill, load_golden, unit


@pytest.fixture
def small(monkeypatch):
    """Let `dat_tiny` be a smaller network: the published one takes half a second to build."""
    monkeypatch.setitem(_dat_backbone._SIZES, "dat_tiny", _dat_backbone._Size(channels=32, depth=2))


def _on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DATBackbone(*args, **kwargs)


def _weights(rng, backbone):
    """Return weights as the original stores them, with its classifier and its tables of indices."""
    state = {
        name: torch.randn(t.shape, generator=rng) * 0.1 + name.endswith("norm.weight")
        for name, t in to_original(backbone.state_dict()).items()
    }
    for name in [name for name in state if name.endswith("proj_qkv.weight")]:
        state[name.replace("proj_qkv.weight", "relative_position_index")] = torch.zeros(49, 49, dtype=torch.int64)
    state["stages.0.attns.1.attn_mask"] = torch.zeros(64, 49, 49)
    channels = len(state["stages.3.layer_norms.0.norm.weight"])
    state |= {"cls_norm.norm.weight": torch.ones(channels), "cls_norm.norm.bias": torch.zeros(channels)}
    return state | {"cls_head.weight": torch.zeros(7, channels), "cls_head.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("name", "image_size", "parameters", "published", "giga"),
    [
        # Of the original's code with its classifier, and of table 2 of the paper.
        ("dat_tiny", 224, 28_319_138, 29e6, 4.6),
        pytest.param("dat_small", 224, 49_700_402, 50e6, 9.0, marks=pytest.mark.slow),
        pytest.param("dat_base", 224, 87_881_632, 88e6, 15.8, marks=pytest.mark.slow),
        pytest.param("dat_base", 384, 88_178_272, 88e6, 49.8, marks=pytest.mark.slow),
    ],
)
def test_parameters_and_flops_are_those_of_the_paper(name, image_size, parameters, published, giga):
    backbone = _on_meta(name, out_layers=(4,), image_size=image_size, window_size=image_size // 32).eval()
    channels = backbone.channels[0]
    count = sum(parameter.numel() for parameter in backbone.parameters()) + 2 * channels + 1000 * (channels + 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, 3, image_size, image_size, device="meta"))
    multiply_adds = counter.get_total_flops() / 2 + 1000 * channels
    assert count == parameters
    assert count == pytest.approx(published, rel=0.03)
    assert multiply_adds / 1e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.slow
def test_features_of_dat_tiny_in_float64_are_those_of_the_original(tmp_path):
    golden = load_golden("dat").arrays
    settings = {"image_size": 64, "window_size": 2, "out_layers": (1, 2, 3, 4)}
    shapes = {name: tuple(t.shape) for name, t in to_original(_on_meta(**settings).state_dict()).items()}
    torch.save({"model": {name: fill(f"dat_tiny.{name}", shape) for name, shape in shapes.items()}}, tmp_path / "a.pth")
    backbone = DATBackbone("dat_tiny", weights=tmp_path / "a.pth", **settings).double().eval()
    with torch.no_grad():
        features = backbone(unit("dat_tiny.image", (1, 3, 64, 64)))
    for stage, feature in enumerate(features, start=1):
        found = feature.contiguous().flatten()[::16]
        torch.testing.assert_close(found, torch.from_numpy(golden[f"dat_tiny/stage{stage}"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("out_layers", [(2, 3, 4), (1, 3), (4,)])
def test_images_of_any_size_give_features_whose_sizes_are_rounded_up(small, out_layers):
    backbone = _on_meta(out_layers=out_layers)
    assert backbone.channels == tuple(16 << layer for layer in out_layers)
    assert backbone.strides == tuple(2 << layer for layer in out_layers)
    for height, width in ((96, 160), (33, 101), (1, 7)):
        features = backbone(torch.empty(2, 3, height, width, device="meta"))
        assert [tuple(feature.shape) for feature in features] == [
            (2, channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]


def test_second_blocks_shift_windows_in_stages_1_and_2_and_deform_in_3_and_4():
    found = [_on_meta("dat_base", image_size=384, window_size=12).stages[stage].blocks for stage in range(4)]
    assert [len(blocks) for blocks in found] == [2, 2, 18, 2]
    assert [block.attention.shift for blocks in found for block in blocks[::2]] == [0] * 12
    assert [block.attention.shift for blocks in found[:2] for block in blocks[1::2]] == [6, 6]
    deformable = [block.attention for blocks in found[2:] for block in blocks[1::2]]
    assert all(isinstance(layer, DeformableAttention2d) for layer in deformable)
    settings = {(layer.n_heads, layer.n_groups, *layer.position_bias.shape[1:]) for layer in deformable}
    assert settings == {(16, 4, 47, 47), (32, 8, 23, 23)}


@pytest.mark.parametrize("entry", ["model", None])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_original_weights_are_loaded_exactly(rng, small, tmp_path, entry, kind):
    state = _weights(rng, DATBackbone())
    torch.save({entry: state, "epoch": 299} if entry else state, tmp_path / "dat.pth")
    loaded = to_original(DATBackbone(weights=kind(tmp_path / "dat.pth")).state_dict())
    assert loaded.keys() == {name for name in state if not name.startswith("cls") and name not in _indices(state)}
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name]), name


def _indices(state):
    return {name for name in state if name.endswith(("relative_position_index", "attn_mask"))}


def test_settings_that_the_original_stores_beside_weights_are_plain_values(rng, small, tmp_path, monkeypatch):
    # The package yacs has a subclass of dict.
    yacs = ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    settings = yacs.CfgNode(MODEL=yacs.CfgNode(NAME="dat_tiny"))
    settings.__dict__["__immutable__"] = True
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", yacs)
        torch.save({"model": _weights(rng, DATBackbone()), "config": settings}, tmp_path / "dat.pth")
    assert "yacs" not in sys.modules
    DATBackbone(weights=tmp_path / "dat.pth")


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"stages.2.local_perception_units.0.weight": torch.zeros(1)}, {}, r"Unexpected .*local_perception_units\.0"),
        ({}, {"window_size": 12}, r"size mismatch for stages\.0\.blocks\.0\.attention\.position_bias"),
        ({}, {"image_size": 384}, r"size mismatch for stages\.2\.blocks\.1\.attention\.position_bias"),
        ({"stages.0.attns.0.relative_position_bias_table": torch.zeros(5, 1)}, {}, "size mismatch"),
        ({"patch_proj.0.bias": None}, {}, r"Missing .*stages\.0\.downsample\.conv\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_path_and_reason(rng, small, tmp_path, change, settings, message):
    state = _weights(rng, DATBackbone()) | change
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "dat.pth")
    with pytest.raises(ValueError, match=rf"weights \(.*dat\.pth\) do not fit dat_tiny: .*{message}"):
        DATBackbone(weights=tmp_path / "dat.pth", **settings)


def test_weights_that_are_not_there_are_named(small):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        DATBackbone(weights="nowhere.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dat_large"}, "dat_large"),
        ({"image_size": 200}, "image_size must be a positive multiple of 32, got 200"),
        ({"window_size": 1}, "window_size must be at least 2, got 1"),
        ({"trainable_layers": 6}, r"trainable_layers must lie in 0\.\.5, got 6"),
        ({"out_layers": (4, 3)}, r"ascending stages out of 1 to 4, got \(4, 3\)"),
        ({"drop_path": 1.5}, r"drop_path must lie in 0\.\.1, got 1\.5"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    # Where annotations are checked, they refuse an unknown name first.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        _on_meta(**settings)


@pytest.mark.parametrize("trainable_layers", range(6))
def test_frozen_stages_have_no_gradients_and_leave_out_no_branches(rng, small, trainable_layers):
    backbone = DATBackbone(drop_path=0.5, trainable_layers=trainable_layers)
    backbone.eval()
    backbone.train()
    for name, part in [*backbone.named_modules(), *backbone.named_parameters()]:
        if name.startswith("stages."):
            needed = 5 if name.startswith("stages.0.downsample") else 4 - int(name.split(".")[1])
            trains = part.training if isinstance(part, nn.Module) else part.requires_grad
            assert trains == (trainable_layers >= needed), name


def test_branches_are_left_out_for_some_images_of_a_batch_in_training(rng, small):
    block = DATBackbone(drop_path=0.5).blocks[-1]
    x = torch.randn(1, 256, 2, 2, generator=rng).expand(64, -1, -1, -1)
    evaluated = block.eval()(x)
    torch.testing.assert_close(evaluated, evaluated[:1].expand_as(evaluated), rtol=1e-4, atol=1e-5)
    kept = [(image != x[0]).any().item() for image in block.train()(x)]
    # Both branches are left out of a quarter of the images.
    assert 25 < sum(kept) < 63
    rates = [block.drop_path.p for block in DATBackbone(drop_path=0.5).blocks]
    assert rates == pytest.approx([0.5 * index / 7 for index in range(8)])


def test_detector_trains_on_features_with_and_without_checkpointing(rng, small, seed):
    config = tiny_config(backbone={"kind": "dat", "drop_path": 0.5}, dropout=0.0)
    model = config.build().train()
    images = [torch.randn(3, 64, 96, generator=rng), torch.randn(3, 90, 64, generator=rng)]

    def gradients():
        torch.manual_seed(seed)
        model.zero_grad()
        model(images)["pred_logits"].square().sum().backward()
        return {name: parameter.grad for name, parameter in model.backbone.named_parameters()}

    expected = gradients()
    assert all(gradient is not None for gradient in expected.values())
    enable_gradient_checkpointing(model)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name])


def test_config_builds_what_it_says(small):
    config = DATConfig(image_size=64, window_size=4, drop_path=0.25, trainable_layers=3)
    backbone = config.build((3, 4))
    assert backbone.strides == (16, 32)
    assert backbone.blocks[0].attention.window_size == 4
    assert backbone.blocks[-1].drop_path.p == 0.25
    assert tuple(backbone.blocks[-1].attention.position_bias.shape) == (8, 3, 3)
    assert not backbone.blocks[1].norm1.weight.requires_grad
    assert backbone.blocks[2].norm1.weight.requires_grad


def test_pretrained_weights_without_a_name_do_not_replace_given_ones():
    config = tiny_config(backbone=DATConfig(weights="dat.pth"))
    assert with_backbone_weights(config, "DEFAULT") == config
    assert with_backbone_weights(config, None).backbone == DATConfig()
