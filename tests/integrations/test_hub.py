"""Models in folders and on the Hub; no test uses the network."""

import inspect
import json
import re
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml

from checkpoints import tiny_config, tiny_detr_config
from deformdetr import preset
from deformdetr.config import ResNetConfig, load_config
from deformdetr.data import LabelMap
from deformdetr.integrations import CheckpointError
from deformdetr.integrations.hub import (
    InferenceSettings,
    from_pretrained,
    is_pretrained,
    pretrained_config,
    pretrained_settings,
    push_to_hub,
    save_pretrained,
)
from local_server import COMMIT, point_hub_to, serving

CONFIGS = {
    "deformable_detr": tiny_config(two_stage=True, with_box_refine=True, num_queries=7),
    "detr": tiny_detr_config(),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def assert_same(model, other):
    expected = other.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@configs
def test_models_are_restored_from_folders(config, tmp_path):
    model = config.build()
    save_pretrained(model, config, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "inference.json",
        "model.safetensors",
    ]
    loaded = from_pretrained(str(folder))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert_same(loaded, model)
    assert pretrained_config(folder) == config == load_config(folder / "config.json", type(config))
    if config.kind == "deformable_detr":
        assert loaded.queries.num_queries == 7


def test_saving_again_replaces_the_model_but_not_the_card(tmp_path):
    config = tiny_config()
    save_pretrained(config.build(), config, tmp_path)
    assert "library_name: deformdetr" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("Written by hand.")
    second = config.build()
    save_pretrained(second, config, tmp_path)
    assert_same(from_pretrained(tmp_path), second)
    assert (tmp_path / "README.md").read_text() == "Written by hand."


def test_pretrained_weights_of_the_backbone_are_neither_written_nor_loaded(tmp_path):
    config = tiny_config(d_model=16, backbone=ResNetConfig(name="resnet18"))
    model = config.build()
    named = config.replace(backbone=ResNetConfig(name="resnet18", weights=str(tmp_path / "gone.pth")))
    save_pretrained(model, named, tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    assert json.loads(path.read_text())["backbone"]["weights"] is None
    # Nor from a config that somebody else has written.
    path.write_text(named.model_dump_json())
    assert_same(from_pretrained(tmp_path / "folder"), model)


SETTINGS = InferenceSettings(
    label_map=LabelMap(names=("red cell", "a|b", "<c>", "Zäh", "#5"), category_ids=(3, 1, 7, 9, 11)),
    image_mean=(0.5, 0.4, 0.3),
    image_std=(0.1, 0.2, 0.3),
    short_side=480,
    max_size=640,
)


def test_settings_are_kept_and_described_in_the_card(tmp_path):
    config = tiny_config()
    metrics = {"AP": 0.42, "AP75": None, "name": "x", "per_class": [{"AP": 1.0}], "segm": {"AP": 0.3}, "epoch": True}
    save_pretrained(config.build(), config, tmp_path, settings=SETTINGS, metrics=metrics, license_id="apache-2.0")
    assert pretrained_settings(tmp_path) == SETTINGS
    card = (tmp_path / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "deformdetr",
        "pipeline_tag": "object-detection",
        "license": "apache-2.0",
        "tags": ["deformable_detr"],
    }
    assert "# Deformable DETR of 5 classes" in body
    assert re.findall(r"^\| (AP.*|segm.*|epoch.*) \|$", body, flags=re.MULTILINE) == ["AP | 0.42", "segm AP | 0.3"]
    assert "| 0 | 3 | red cell |\n| 1 | 1 | a\\|b |\n| 2 | 7 | \\<c\\> |\n| 3 | 9 | Zäh |\n| 4 | 11 | \\#5 |\n" in body
    assert "shorter side of 480 pixels, or less to keep the longer side within 640" in body
    assert "mean 0.5, 0.4, 0.3 and the standard deviation 0.1, 0.2, 0.3" in body


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (InferenceSettings(), "Photographs are turned upright by their EXIF orientation.\n"),
        (
            InferenceSettings(orientation="stored", gray_bits=12),
            "Photographs are used as stored, whatever their EXIF orientation. Of 16-bit grayscale, 12 bits are used.\n",
        ),
    ],
)
def test_cards_tell_how_images_are_decoded(settings, told, tmp_path):
    config = tiny_config()
    save_pretrained(config.build(), config, tmp_path, settings=settings)
    card = (tmp_path / "README.md").read_text()
    assert told in card
    assert 'deformdetr.load("user/name")' in card


def test_cards_tell_settings_of_the_evaluation_from_its_metrics(tmp_path):
    model, config = tiny_config().build(), tiny_config()
    save_pretrained(model, config, tmp_path, metrics={"AP": 0.5, "max_detections": 300})
    card = (tmp_path / "README.md").read_text()
    assert "| AP | 0.5 |" in card
    assert "AP counts at most 300 detections per image and class." in card
    assert "max" + "\\_detections" not in card


def test_cards_leave_out_what_is_not_known(tmp_path):
    config = tiny_config(masks=True)
    save_pretrained(config.build(), config, tmp_path, settings=InferenceSettings(short_side=None))
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "are not resized" in card
    assert not any(word in card for word in ("license", "## Labels", "## Metrics"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"license_id": "a\ntags: b"}, "license_id must be an identifier"),
        (
            {"settings": InferenceSettings(label_map=LabelMap.sparse({5: "six"}))},
            "6 labels, but the model has 5 classes",
        ),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(options, reason, tmp_path):
    config = tiny_config()
    with pytest.raises(ValueError, match=reason):
        save_pretrained(config.build(), config, tmp_path / "folder", **options)
    assert not (tmp_path / "folder").exists()


def test_sizes_of_settings_must_agree():
    with pytest.raises(ValueError, match=r"max_size \(600\) is below short_side \(800\)"):
        InferenceSettings(max_size=600)


@pytest.fixture
def hub_with_a_model(tmp_path, monkeypatch):
    """Return a Hub on this machine with one model, and the model."""
    config = tiny_config()
    model = config.build()
    save_pretrained(model, config, tmp_path / "saved", settings=SETTINGS)
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.repositories["user/cells"] = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
        yield server, model


def test_models_are_downloaded_by_name_with_their_settings(hub_with_a_model, tmp_path, monkeypatch):
    server, model = hub_with_a_model
    for source, options in {"user/cells": {}, f"user/cells@{COMMIT}": {}, "user/cells ": None}.items():
        if options is None:
            with pytest.raises(FileNotFoundError, match="not the id of a repository"):
                from_pretrained(source)
            continue
        assert_same(from_pretrained(source, **options), model)
        assert pretrained_settings(source) == SETTINGS
    assert_same(from_pretrained("user/cells", revision="main"), model)
    assert ("GET", "/user/cells/resolve/main/README.md") not in server.requests
    with pytest.raises(ValueError, match="has a revision, but revision is 'v2' too"):
        from_pretrained("user/cells@v1", revision="v2")
    with pytest.raises(FileNotFoundError, match="has no revision 'v2'"):
        from_pretrained("user/cells", revision="v2")
    # Earlier downloads serve without a connection.
    point_hub_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert_same(from_pretrained("user/cells", local_files_only=True), model)
    assert pretrained_settings("user/cells") == SETTINGS


def test_refusals_of_the_hub_and_broken_transfers_are_told(hub_with_a_model, tmp_path):
    server, model = hub_with_a_model
    with pytest.raises(FileNotFoundError, match="no repository on the Hub of this name"):
        from_pretrained("user/gone")
    server.gated.add("user/cells")
    with pytest.raises(PermissionError, match="user/cells is gated"):
        from_pretrained("user/cells")
    server.gated.clear()
    server.truncated.add("/user/cells/resolve/main/model.safetensors")
    with pytest.raises(ConnectionError, match="cannot be downloaded from the Hub"):
        from_pretrained("user/cells")
    server.truncated.clear()
    assert_same(from_pretrained("user/cells"), model)


def test_repositories_without_settings_have_the_defaults_with_and_without_a_connection(
    hub_with_a_model, tmp_path, monkeypatch
):
    server, _ = hub_with_a_model
    del server.repositories["user/cells"]["inference.json"]
    server.statuses["/user/cells/resolve/main/inference.json"] = 500
    with pytest.raises(ConnectionError, match=r"inference\.json .*500"):
        pretrained_settings("user/cells")
    server.statuses.clear()
    assert pretrained_settings("user/cells") == InferenceSettings()
    point_hub_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert pretrained_settings("user/cells") == InferenceSettings()
    assert pretrained_settings("user/cells", local_files_only=True) == InferenceSettings()


def test_a_config_of_another_model_is_refused_before_anything_is_written(tmp_path):
    model = tiny_config().build()
    with pytest.raises(ValueError, match=r"does not describe this model: 2 entries differ, .* class_heads\.0\.bias"):
        save_pretrained(model, tiny_config(num_classes=6), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_damaged_folders_are_named(tmp_path):
    config = tiny_config()
    save_pretrained(config.build(), config, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_classes": 9}))
    with pytest.raises(CheckpointError, match="num_classes=5"):
        from_pretrained(tmp_path)
    path.write_text('{"kind": "yolo"}')
    with pytest.raises(ValueError, match=r"config\.json is not a config of this library"):
        from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no file config\.json"):
        from_pretrained(tmp_path)
    save_pretrained(config.build(), config, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no file model\.safetensors"):
        from_pretrained(tmp_path)
    (tmp_path / "inference.json").write_text('{"short_side": -1}')
    with pytest.raises(ValueError, match=r"inference\.json: 1 validation error"):
        pretrained_settings(tmp_path)
    (tmp_path / "inference.json").unlink()
    assert pretrained_settings(tmp_path) == InferenceSettings()


def test_names_are_told_from_paths_by_the_rule_of_checkpoints(hub_with_a_model, tmp_path, monkeypatch):
    server, _ = hub_with_a_model
    save_pretrained(tiny_config().build(), tiny_config(), tmp_path / "mine")
    monkeypatch.setenv("MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert is_pretrained("$MODELS/mine")
    assert_same(from_pretrained("$MODELS/mine"), from_pretrained(tmp_path / "mine"))
    assert not any(map(is_pretrained, (tmp_path, "mine/config.json", "https://host/model.pth", "user/cells:best.pt")))
    (tmp_path / "user").mkdir()
    with pytest.raises(FileNotFoundError, match="beside a folder user this is a path, and user/cells@main a"):
        from_pretrained("user/cells")
    assert not is_pretrained("user/cells")
    assert server.requests == []
    assert is_pretrained("user/cells@main")
    assert pretrained_config("user/cells@main") == tiny_config()


@pytest.mark.parametrize("source", ["./runs/model", "runs", "/nowhere/model", "a/b/c"])
def test_sources_that_are_neither_folder_nor_id_raise_without_a_request(source, tmp_path, monkeypatch):
    # Where nothing is: the checkout has a folder `runs` after the demonstration.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=f"there is no folder {source}"):
        from_pretrained(source)


def test_repositories_come_from_the_cache_of_downloads(tmp_path):
    config = tiny_config()
    model = config.build()
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--user--cells"
    save_pretrained(model, config, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert_same(from_pretrained("user/cells", **options), model)
    assert pretrained_config("user/cells", revision=commit, **options) == config
    with pytest.raises(FileNotFoundError):
        from_pretrained("user/others", **options)


REAL_SIGNATURES = {
    name: inspect.signature(getattr(huggingface_hub.HfApi, name))
    for name in ("create_repo", "file_exists", "upload_folder")
}


class FakeHub:
    """Takes the calls that `HfApi` would take; the folder `uploaded` is what the Hub has received."""

    def __init__(self, uploaded, *, has_card=False):
        self.uploaded, self.has_card, self.calls = uploaded, has_card, {}

    def __call__(self, *, token):
        self.calls["token"] = token
        return self

    def create_repo(self, *arguments, **options):
        return SimpleNamespace(repo_id=self._note("create_repo", arguments, options)["repo_id"])

    def file_exists(self, *arguments, **options):
        self._note("file_exists", arguments, options)
        return self.has_card

    def upload_folder(self, *arguments, **options):
        given = self._note("upload_folder", arguments, options)
        shutil.copytree(
            given["folder_path"], self.uploaded, ignore=shutil.ignore_patterns(*(given["ignore_patterns"] or []))
        )
        return SimpleNamespace(commit_url="commit", pr_url="request" if given["create_pr"] else None)

    def _note(self, name, arguments, options):
        self.calls[name] = REAL_SIGNATURES[name].bind(None, *arguments, **options).arguments
        return self.calls[name]


@pytest.mark.parametrize("has_card", [False, True])
def test_push_uploads_a_folder_that_restores_the_model(has_card, tmp_path, monkeypatch):
    config = tiny_config()
    model = config.build()
    hub = FakeHub(tmp_path / "uploaded", has_card=has_card)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    options = {
        "private": True,
        "token": "secret",
        "revision": "main",
        "commit_message": "Epoch 40",
        "settings": SETTINGS,
    }
    assert push_to_hub(model, config, "user/cells", **options) == "commit"
    assert hub.calls["token"] == "secret"
    assert hub.calls["create_repo"].items() >= {"private": True, "exist_ok": True}.items()
    expected = {"repo_id": "user/cells", "revision": "main", "commit_message": "Epoch 40"}
    assert hub.calls["upload_folder"].items() >= expected.items()
    assert_same(from_pretrained(tmp_path / "uploaded"), model)
    assert pretrained_settings(tmp_path / "uploaded") == SETTINGS
    # A card that is there already is not replaced.
    assert (tmp_path / "uploaded" / "README.md").exists() == (not has_card)


def test_push_returns_the_url_of_a_pull_request_on_request(tmp_path, monkeypatch):
    config = tiny_config()
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(tmp_path / "uploaded"))
    assert push_to_hub(config.build(), config, "user/cells", create_pr=True) == "request"


def test_presets_are_described_by_their_configs(tmp_path):
    config = preset("demo")
    save_pretrained(config.build(), config, tmp_path)
    assert pretrained_config(tmp_path) == config
