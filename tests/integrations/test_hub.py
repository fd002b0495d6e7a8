"""Models in folders and on the Hub; no test uses the network."""

import inspect
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from checkpoints import tiny_config
from deformdetr import preset
from deformdetr.config import DETRConfig, ResNetConfig, load_config
from deformdetr.integrations import CheckpointError
from deformdetr.integrations.hub import from_pretrained, pretrained_config, push_to_hub, save_pretrained

TINY_DETR = DETRConfig(
    num_classes=5,
    d_model=16,
    n_heads=2,
    d_ffn=24,
    num_encoder_layers=1,
    num_decoder_layers=1,
    backbone=tiny_config().backbone,
)
CONFIGS = {"deformable_detr": tiny_config(two_stage=True, with_box_refine=True, num_queries=7), "detr": TINY_DETR}
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
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
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
    path.write_text('{"model_type": "deformable_detr"}')
    with pytest.raises(ValueError, match=r"config\.json is not a config of this library"):
        from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["./runs/model", "runs", "/nowhere/model", "a/b/c"])
def test_sources_that_are_neither_folder_nor_id_raise_without_a_request(source, tmp_path, monkeypatch):
    # Where nothing is: the checkout has a folder `runs` after the demonstration.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
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
    options = {"private": True, "token": "secret", "revision": "main", "commit_message": "Epoch 40"}
    assert push_to_hub(model, config, "user/cells", **options) == "commit"
    assert hub.calls["token"] == "secret"
    assert hub.calls["create_repo"].items() >= {"private": True, "exist_ok": True}.items()
    expected = {"repo_id": "user/cells", "revision": "main", "commit_message": "Epoch 40"}
    assert hub.calls["upload_folder"].items() >= expected.items()
    assert_same(from_pretrained(tmp_path / "uploaded"), model)
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
