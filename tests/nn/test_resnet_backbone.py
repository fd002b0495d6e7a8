import copy
import pickle
import socket
from functools import partial
from urllib.error import URLError

import pytest
import torch
import torchvision
from jaxtyping import TypeCheckError
from torch import nn

from deformdetr.nn import DeformConv2d, ResNetBackbone
from local_server import serving

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def _stage_of(name):
    return "stem" if name.startswith(("conv1", "bn1")) else name.partition(".")[0]


def _on_meta(*args, **kwargs):
    with torch.device("meta"):
        return ResNetBackbone(*args, **kwargs)


def _state_dict(rng, name="resnet18", num_classes=7):
    """Return a trained-looking state dict of torchvision: no scale is one, no statistic is zero."""
    state = torchvision.models.get_model(name, weights=None, num_classes=num_classes).state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(17)
        elif tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
    return state


@pytest.fixture
def weights(rng, tmp_path):
    """Return a state dict of ResNet-18 with a classifier, and its file."""
    state = _state_dict(rng)
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    return state, path


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("resnet34", (64, 128, 256, 512)),
        ("resnet50", (256, 512, 1024, 2048)),
        ("resnet101", (256, 512, 1024, 2048)),
    ],
)
@pytest.mark.parametrize("out_layers", [(2, 3, 4), (1, 2, 3, 4), (4,), (1, 3)])
def test_outputs_have_the_channels_and_strides_that_they_announce(name, channels, out_layers):
    backbone = _on_meta(name, out_layers=out_layers)
    assert backbone.channels == tuple(channels[layer - 1] for layer in out_layers)
    assert backbone.strides == tuple((4, 8, 16, 32)[layer - 1] for layer in out_layers)
    features = backbone(torch.empty(2, 3, 96, 160, device="meta"))
    assert [tuple(feature.shape) for feature in features] == [
        (2, channels, 96 // stride, 160 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilation_keeps_stride_16_and_the_parameters(name):
    backbone, plain = _on_meta(name, dilation=True), _on_meta(name)
    assert backbone.strides == (8, 16, 16)
    sizes = [tuple(feature.shape[2:]) for feature in backbone(torch.empty(1, 3, 96, 160, device="meta"))]
    assert sizes == [(12, 20), (6, 10), (6, 10)]
    assert {key: value.shape for key, value in backbone.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert {conv.dilation for conv in backbone.layer4.modules() if isinstance(conv, nn.Conv2d)} == {(1, 1), (2, 2)}


def test_odd_sizes_round_up():
    features = _on_meta("resnet18")(torch.empty(1, 3, 33, 65, device="meta"))
    assert [tuple(feature.shape[2:]) for feature in features] == [(5, 9), (3, 5), (2, 3)]


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
def test_features_are_those_of_torchvision_with_the_same_weights(rng, weights, norm):
    state, path = weights
    resnet = torchvision.models.resnet18(weights=None, num_classes=7)
    resnet.load_state_dict(state)
    expected = []
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        stage.register_forward_hook(lambda module, inputs, output: expected.append(output))
    images = torch.randn(2, 3, 40, 56, generator=rng)
    with torch.no_grad():
        resnet.eval()(images)
        features = ResNetBackbone("resnet18", out_layers=(1, 2, 3, 4), norm=norm, weights=path).eval()(images)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours / theirs.std(), theirs / theirs.std(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_weights_from_a_file_are_loaded_exactly(weights, norm, kind):
    state, path = weights
    loaded = ResNetBackbone("resnet18", norm=norm, weights=kind(path)).state_dict()
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    expected = {key for key in state if not key.startswith("fc.")} - (counters if norm == "frozen_batch" else set())
    assert set(loaded) == expected
    for key in expected:
        assert torch.equal(loaded[key], state[key]), key


def test_weights_below_the_home_folder_are_found(weights, monkeypatch, tmp_path):
    state, _ = weights
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone = ResNetBackbone("resnet18", weights="~/resnet18.pth")
    assert torch.equal(backbone.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
@pytest.mark.parametrize("left_out", ["fc.", "num_batches_tracked"])
def test_weights_need_neither_classifier_nor_counters(weights, norm, left_out):
    state, path = weights
    torch.save({key: tensor for key, tensor in state.items() if left_out not in key}, path)
    backbone = ResNetBackbone("resnet18", norm=norm, weights=path)
    assert torch.equal(backbone.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])


def test_default_weights_are_torchvisions_best(rng, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = _state_dict(rng, num_classes=1000)
    # Where torchvision would have saved them.
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    cached = tmp_path / "hub" / "checkpoints" / name
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    backbone = ResNetBackbone("resnet18", weights="DEFAULT")
    assert torch.equal(backbone.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])


def test_default_weights_that_cannot_be_downloaded_are_named_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_, **__):
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr("deformdetr._files._download.urlopen", fail)
    with pytest.raises(ConnectionError) as caught:
        ResNetBackbone("resnet50", weights="DEFAULT")
    url = torchvision.models.ResNet50_Weights.DEFAULT.url
    place = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    assert str(caught.value) == (
        f"{url} cannot be downloaded: Name or service not known; download it another way and save it as {place}"
    )


def test_weights_are_downloaded_from_a_url(weights, monkeypatch, tmp_path):
    state, path = weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with serving() as server:
        server.files["/resnet18.pth"] = path.read_bytes()
        backbone = ResNetBackbone("resnet18", weights=f"{server.url}/resnet18.pth")
    assert torch.equal(backbone.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])


def test_no_weights_draw_new_ones():
    one, other = ResNetBackbone("resnet18"), ResNetBackbone("resnet18")
    assert not torch.equal(one.layer4[0].conv1.weight, other.layer4[0].conv1.weight)


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [("resnet34", "resnet18", "Unexpected key"), ("resnet18", "resnet34", "Missing key"), ("resnet18", "resnet50", "")],
)
def test_weights_of_another_network_are_refused_with_path_and_reason(rng, tmp_path, theirs, ours, reason):
    path = tmp_path / "other.pth"
    torch.save(_state_dict(rng, theirs), path)
    with pytest.raises(ValueError, match=rf"{path}\) do not fit {ours}: .*{reason}") as caught:
        ResNetBackbone(ours, weights=path)
    assert len(str(caught.value)) < 1000


class _Unpickled:
    """What a file of weights must not be able to run."""

    called = False

    def __reduce__(self):
        return setattr, (_Unpickled, "called", True)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_text("no weights\n"), "cannot be read: not a file that torch"),
        (lambda path: path.write_bytes(b""), "cannot be read: not a file that torch"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read: not a file that torch"),
        (lambda path: path.write_bytes(pickle.dumps(_Unpickled(), protocol=2)), "cannot be read: it holds a .*setattr"),
        (lambda path: torch.save([torch.zeros(3)], path), "hold no state dict of tensors: the file has a list"),
        (lambda path: torch.save({"model": {}}, path), "hold no state dict of tensors: the file has a dict"),
        (lambda path: torch.save({}, path), "do not fit resnet18: Missing key"),
    ],
    ids=["text", "empty", "cut", "code", "list", "nested", "nothing"],
)
def test_files_that_are_no_weights_are_refused_with_path_and_reason(weights, write, reason):
    _, path = weights
    write(path)
    with pytest.raises(ValueError, match=rf"{path}\)? {reason}"):
        ResNetBackbone("resnet18", weights=path)
    assert not _Unpickled.called


def test_missing_file_is_named(tmp_path):
    path = tmp_path / "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        ResNetBackbone("resnet18", weights=path)


@pytest.mark.parametrize("norm", ["frozen_batch", "batch", "group"])
@pytest.mark.parametrize("trainable_layers", range(6))
def test_last_stages_train_and_the_others_do_not(trainable_layers, norm):
    backbone = _on_meta("resnet18", trainable_layers=trainable_layers, norm=norm)
    trainable = STAGES[5 - trainable_layers :]
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (_stage_of(name) in trainable), name


def test_three_stages_train_unless_told_otherwise():
    assert {_stage_of(name) for name, p in _on_meta().named_parameters() if p.requires_grad} == set(STAGES[2:])


@pytest.mark.parametrize("trainable_layers", [0, 2, 5])
def test_frozen_stages_do_not_change_in_training(rng, trainable_layers):
    backbone = ResNetBackbone("resnet18", norm="batch", trainable_layers=trainable_layers)
    before = copy.deepcopy(backbone.state_dict())
    # Through evaluation and back, as a training loop goes.
    backbone.eval()
    backbone.train()
    images = torch.randn(2, 3, 64, 64, generator=rng)
    features = backbone(images)
    if trainable_layers:
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        sum(feature.square().mean() for feature in features).backward()
        optimizer.step()
    trainable = STAGES[5 - trainable_layers :]
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == (_stage_of(name) in trainable), name
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key]) == (_stage_of(key) not in trainable), key


@pytest.mark.parametrize("trainable_layers", [0, 3, 5])
@pytest.mark.parametrize(
    "copied", [lambda module: module, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_frozen_stages_stay_in_evaluation_mode(trainable_layers, copied):
    backbone = copied(ResNetBackbone("resnet18", norm="batch", trainable_layers=trainable_layers))
    assert backbone.train() is backbone
    assert backbone.training
    trainable = STAGES[5 - trainable_layers :]
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (_stage_of(name) in trainable), name
    assert not any(module.training for module in backbone.eval().modules())


def test_frozen_stages_stay_in_evaluation_mode_inside_a_model():
    model = nn.Sequential(ResNetBackbone("resnet18", norm="batch"), nn.Identity()).train()
    assert not model[0].bn1.training
    assert model[0].layer4[0].bn1.training


def test_new_backbone_is_frozen_before_the_first_call_of_train():
    backbone = ResNetBackbone("resnet18", norm="batch")
    assert not backbone.bn1.training
    assert not backbone.layer1[0].bn1.training


def test_frozen_batch_norm_neither_learns_nor_counts(rng):
    backbone = ResNetBackbone("resnet18", trainable_layers=5).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    sum(feature.mean() for feature in backbone(torch.randn(2, 3, 64, 64, generator=rng))).backward()
    norms = [module for module in backbone.modules() if type(module).__name__ == "FrozenBatchNorm2d"]
    assert len(norms) == 20
    assert {norm.eps for norm in norms} == {1e-5}
    assert not any(list(norm.parameters()) for norm in norms)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_group_norm_serves_every_network():
    for name in ("resnet18", "resnet50"):
        norms = [module for module in _on_meta(name, norm="group").modules() if isinstance(module, nn.GroupNorm)]
        assert norms
        assert {norm.num_groups for norm in norms} == {32}


def test_weights_of_batch_norm_do_not_go_into_group_norm(weights):
    _, path = weights
    with pytest.raises(ValueError, match=rf"{path}\) are those of a batch-norm network .* norm='group'"):
        ResNetBackbone("resnet18", norm="group", weights=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet152"}, "resnet152"),
        ({"norm": "layer"}, "layer"),
        ({"name": "resnet18", "dilation": True}, "resnet18 has no dilated form"),
        ({"name": "resnet34", "dilation": True}, "resnet34 has no dilated form"),
        ({"trainable_layers": 6}, r"trainable_layers must lie in 0..5, got 6"),
        ({"trainable_layers": -1}, r"trainable_layers must lie in 0..5, got -1"),
        ({"out_layers": ()}, r"out_layers must be ascending stages out of 1 to 4, got \(\)"),
        ({"out_layers": (3, 2)}, r"got \(3, 2\)"),
        ({"out_layers": (2, 2)}, r"got \(2, 2\)"),
        ({"out_layers": (4, 5)}, r"got \(4, 5\)"),
        ({"convolutions": {5: DeformConv2d}}, "convolutions are for stages 1 to 4, got 5"),
        ({"name": "resnet18", "convolutions": {4: DeformConv2d}}, "bottlenecks, which resnet18 does not have"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    # Where annotations are checked, they refuse an unknown name first.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        _on_meta(**settings)


@pytest.mark.parametrize("dilation", [False, True])
def test_chosen_stages_have_the_given_convolutions_with_the_geometry_of_the_plain_ones(dilation):
    plain = _on_meta("resnet50", dilation=dilation)
    backbone = _on_meta("resnet50", dilation=dilation, convolutions=dict.fromkeys((2, 3, 4), DeformConv2d))
    replaced = [name for name, module in backbone.named_modules() if isinstance(module, DeformConv2d)]
    assert replaced == [
        f"layer{stage}.{block}.conv2" for stage, count in ((2, 4), (3, 6), (4, 3)) for block in range(count)
    ]
    for name in replaced:
        ours, theirs = backbone.get_submodule(name).conv_offset, plain.get_submodule(name)
        for setting in ("kernel_size", "stride", "padding", "dilation"):
            assert getattr(ours, setting) == getattr(theirs, setting)
    images = torch.empty(1, 3, 64, 96, device="meta")
    assert [feature.shape for feature in backbone(images)] == [feature.shape for feature in plain(images)]


@pytest.fixture(scope="module")
def bottlenecks(tmp_path_factory):
    """Return a state dict of ResNet-50 with a classifier, and its file."""
    state = _state_dict(torch.Generator().manual_seed(0), "resnet50")
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(state, path)
    return state, path


def test_weights_of_the_plain_network_go_into_deformable_convolutions_and_give_its_features(rng, bottlenecks):
    _, path = bottlenecks
    plain = ResNetBackbone("resnet50", weights=path)
    deformable = ResNetBackbone("resnet50", weights=path, convolutions={4: partial(DeformConv2d, version=1)})
    state = deformable.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state.pop(name), tensor), name
    assert list(state) == [f"layer4.{b}.conv2.conv_offset.{p}" for b in range(3) for p in ("weight", "bias")]
    images = torch.randn(1, 3, 64, 64, generator=rng)
    with torch.no_grad():
        for ours, theirs in zip(deformable.eval()(images), plain.eval()(images), strict=True):
            torch.testing.assert_close(ours / theirs.std(), theirs / theirs.std(), rtol=1e-3, atol=1e-3)


def test_weights_of_the_deformable_network_are_loaded_with_their_offsets(rng, bottlenecks, tmp_path):
    state, _ = bottlenecks
    learned = {"weight": torch.randn(27, 512, 3, 3, generator=rng), "bias": torch.randn(27, generator=rng)}
    offsets = {f"layer4.{b}.conv2.conv_offset.{name}": value for b in range(3) for name, value in learned.items()}
    torch.save(state | offsets, tmp_path / "dcn.pth")
    backbone = ResNetBackbone("resnet50", weights=tmp_path / "dcn.pth", convolutions={4: DeformConv2d})
    for name, tensor in offsets.items():
        assert torch.equal(backbone.state_dict()[name], tensor)
    with pytest.raises(ValueError, match=r"do not fit resnet50: .*Unexpected key.*conv_offset"):
        ResNetBackbone("resnet50", weights=tmp_path / "dcn.pth")


def test_offsets_of_trained_stages_learn_and_those_of_frozen_ones_do_not(rng):
    backbone = ResNetBackbone("resnet50", trainable_layers=1, convolutions=dict.fromkeys((3, 4), DeformConv2d))
    sum(feature.square().mean() for feature in backbone(torch.randn(1, 3, 64, 64, generator=rng))).backward()
    for name, parameter in backbone.named_parameters():
        if "conv_offset" in name:
            assert (parameter.grad is not None) == name.startswith("layer4"), name
