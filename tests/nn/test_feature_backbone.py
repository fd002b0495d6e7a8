import copy
import itertools
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from checkpoints import tiny_config
from deformdetr.config import TimmConfig
from deformdetr.nn import FeatureBackbone
from local_server import point_hub_to

TINY = {
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"strict_img_size": False, "embed_dim": 24, "window_size": 4},
    "resnet10t": {},
}


class _Pyramid(nn.Module):
    """Three strided convolutions with batch norm, and what is made of their outputs."""

    def __init__(self, collect):
        super().__init__()
        widths = (3, 4, 6, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=4 if b == 4 else 2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.collect = collect

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.collect(features)


def _as_dict(features):
    return OrderedDict((f"res{index}", feature) for index, feature in enumerate(features, start=3))


@pytest.mark.parametrize(
    ("collect", "outputs", "expected"),
    [
        (list, None, [0, 1, 2]),
        (tuple, (0, 2), [0, 2]),
        (list, (-1,), [2]),
        (_as_dict, None, [0, 1, 2]),
        (_as_dict, ("res4", "res5"), [1, 2]),
    ],
)
def test_lists_tuples_and_mappings_of_features_are_found_by_a_dry_run(rng, collect, outputs, expected):
    body = _Pyramid(collect)
    before = copy.deepcopy(body.state_dict())
    backbone = FeatureBackbone(body, outputs=outputs)
    assert backbone.channels == tuple((4, 6, 8)[index] for index in expected)
    assert backbone.strides == tuple((4, 8, 16)[index] for index in expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())
    assert all(module.training for module in body.modules())
    images = torch.randn(2, 3, 64, 96, generator=rng)
    features = backbone.eval()(images)
    body.collect = list
    assert [feature.tolist() for feature in features] == [body(images)[index].tolist() for index in expected]


def test_chosen_outputs_come_in_the_given_order(rng):
    backbone = FeatureBackbone(_Pyramid(_as_dict), outputs=("res5", "res3")).eval()
    features = backbone(torch.randn(1, 3, 32, 32, generator=rng))
    assert [tuple(feature.shape) for feature in features] == [(1, 8, 2, 2), (1, 4, 8, 8)]


def test_dry_run_leaves_every_part_in_its_mode():
    body = _Pyramid(list)
    body.stages[0].eval()
    FeatureBackbone(body)
    for index, stage in enumerate(body.stages):
        assert {module.training for module in stage.modules()} == {index > 0}


def test_declared_channels_and_strides_are_taken_without_a_run():
    class Never(nn.Module):
        def forward(self, x):
            raise RuntimeError("was run")

    backbone = FeatureBackbone(Never(), channels=[5, 7], strides=[8, 16])
    assert (backbone.channels, backbone.strides) == ((5, 7), (8, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (4, 6, 8)}, r"channels \(\(4, 6, 8\)\) and strides \(None\) must be given both or not at all"),
        (
            {"channels": (4, 6), "strides": (4,)},
            r"one stride for each output, got channels \(4, 6\) and strides \(4,\)",
        ),
        ({"channels": (), "strides": ()}, "one stride for each output"),
        ({"frozen": ["stem"]}, "there is no part 'stem' to freeze; there are stages"),
        ({"frozen": [""]}, "there is no part '' to freeze"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureBackbone(_Pyramid(list), **settings)


def test_outputs_that_no_stride_gives_are_refused():
    with pytest.raises(ValueError, match=r"output 1 of an image of 256 x 256 pixels has shape \(1, 3, 254, 254\)"):
        FeatureBackbone(_Pyramid(lambda features: [features[0], torch.zeros(1, 3, 254, 254)]))


def _train_a_step(backbone, images):
    """Return the state before and after a step, from evaluation mode and back as a training loop goes."""
    before = copy.deepcopy(backbone.state_dict())
    backbone.eval()
    backbone.train()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    sum(feature.square().mean() for feature in backbone(images)).backward()
    optimizer.step()
    return before, backbone.state_dict()


@pytest.mark.parametrize("copied", [lambda module: module, copy.deepcopy])
def test_frozen_parts_have_no_gradient_and_do_not_change(rng, copied):
    backbone = copied(FeatureBackbone(_Pyramid(list), frozen=["stages.0", "stages.1.1"]))
    before, after = _train_a_step(backbone, torch.randn(2, 3, 32, 32, generator=rng))
    frozen = ("body.stages.0.", "body.stages.1.1.")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen), name
    assert not backbone.body.stages[0][1].training
    assert backbone.body.stages[2][1].training


def _timm(name, **changes):
    return TimmConfig(**{"name": name, "options": TINY[name]} | changes)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("out_layers", [(2, 3, 4), (4,)])
def test_networks_of_timm_give_the_features_that_they_announce(rng, name, out_layers):
    backbone = _timm(name).build(out_layers)
    assert backbone.strides == tuple(2 << layer for layer in out_layers)
    features = backbone(torch.randn(1, 3, 96, 160, generator=rng))
    assert [tuple(feature.shape) for feature in features] == [
        (1, channels, 96 // stride, 160 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    sum(feature.square().mean() for feature in features).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_feature_maps_of_timm_may_be_chosen(rng):
    backbone = _timm("convnext_atto", out_indices=(0, 2)).build((3, 4))
    assert backbone.strides == (4, 16)
    with pytest.raises(ValueError, match=r"the model takes 3 feature maps, but out_indices are \(0, 2\)"):
        _timm("convnext_atto", out_indices=(0, 2)).build((2, 3, 4))


def test_frozen_parts_of_timm_do_not_change(rng):
    backbone = _timm("resnet10t", frozen=("conv1", "bn1", "layer1", "layer2")).build((2, 3, 4))
    before, after = _train_a_step(backbone, torch.randn(2, 3, 64, 64, generator=rng))
    frozen = tuple(f"body.model.{name}." for name in ("conv1", "bn1", "layer1", "layer2"))
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, tensor in after.items():
        # The scales of the last norms start from zero, so that not all others change in the first step.
        if name.startswith(frozen) or "running" in name:
            assert torch.equal(tensor, before[name]) == name.startswith(frozen), name
    with pytest.raises(ValueError, match=r"there is no part 'model.layer9' to freeze"):
        _timm("resnet10t", frozen=("layer9",)).build((2, 3, 4))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a classifier of timm, and the files of its weights."""
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t", num_classes=7)
    folder = tmp_path_factory.mktemp("timm")
    torch.save(model.state_dict(), folder / "weights.pth")
    save_file(model.state_dict(), folder / "weights.safetensors")
    return model.eval(), folder


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_weights_of_timm_are_loaded_from_a_file(rng, saved, file):
    model, folder = saved
    backbone = _timm("resnet10t", weights=str(folder / file)).build((3, 4)).eval()
    images = torch.randn(1, 3, 64, 64, generator=rng)
    with torch.no_grad():
        expected = model.forward_intermediates(images, indices=[3, 4], intermediates_only=True)
        for ours, theirs in zip(backbone(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_weights_that_do_not_fit_are_refused_with_path_and_reason(saved, tmp_path):
    _, folder = saved
    weights = str(folder / "weights.pth")
    with pytest.raises(
        ValueError, match=r"weights.pth\) do not fit convnext_atto: \d+ are missing, such as stem.0.weight"
    ):
        _timm("convnext_atto", weights=weights).build((4,))
    torch.save(torch.load(weights) | {"conv1.0.weight": torch.zeros(1)}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"cut.pth\) do not fit resnet10t: .*size mismatch for model.conv1.0.weight"):
        _timm("resnet10t", weights=str(tmp_path / "cut.pth")).build((4,))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        _timm("resnet10t", weights=str(tmp_path / "nowhere.pth")).build((4,))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth cannot be read: .*UnpicklingError"):
        _timm("resnet10t", weights=str(tmp_path / "text.pth")).build((4,))


def test_unknown_network_of_timm_is_named():
    with pytest.raises(ValueError, match=r"has no model 'resnet9000'"):
        TimmConfig(name="resnet9000").build((4,))


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"resnet10t needs timm: pip install 'deformdetr\[timm\]'"):
        _timm("resnet10t").build((4,))


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_detector_trains_on_features_of_timm(rng, levels):
    config = tiny_config(backbone=_timm("swin_tiny_patch4_window7_224"), num_feature_levels=levels)
    outputs = config.build()([torch.randn(3, 64, 96, generator=rng), torch.randn(3, 96, 64, generator=rng)])
    assert outputs["pred_boxes"].shape == (2, 12, 4)
    outputs["pred_logits"].sum().backward()


def test_detector_trains_on_features_of_any_network(rng):
    model = tiny_config().build(backbone=FeatureBackbone(_Pyramid(_as_dict), outputs=("res4", "res5")))
    outputs = model(torch.randn(2, 3, 64, 64, generator=rng))
    assert len(model.neck.levels) == 4
    outputs["pred_logits"].sum().backward()
    assert model.backbone.body.stages[0][0].weight.grad.any()


def test_weights_of_timm_that_cannot_be_downloaded_are_named_with_their_place(monkeypatch, tmp_path):
    point_hub_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(
        ConnectionError, match=r"timm's weights of resnet10t cannot be downloaded: .*refused; they are at "
    ):
        TimmConfig(name="resnet10t", weights="DEFAULT").build((2, 3, 4))
