"""Checkpoints by name: paths, folders, and repositories of a Hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deformdetr._files import FileError, HubName, locate_checkpoint
from local_server import COMMIT, Server, point_hub_to, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a Hub with one repository, and change to an empty folder."""
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.repositories["user/cells"] = {"model.safetensors": b"weights" * 1000, "README.md": b"# Cells"}
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield server


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("user/name", ("user/name", None, None)),
        ("SenseTime/deformable-detr", ("SenseTime/deformable-detr", None, None)),
        ("user/name.v2@refs/pr/1", ("user/name.v2", "refs/pr/1", None)),
        ("user/name:a/b.pth", ("user/name", None, "a/b.pth")),
        ("user/name@v1:best.pt", ("user/name", "v1", "best.pt")),
        *((text, None) for text in ("name", "a/b/c", "./a/b", "../b", "/a", "a/", "~/b", "a/b@", "a/b:", "a b/c", "")),
        *((text, None) for text in ("runs/best.pt", "a/model.PTH", "a/model.safetensors", "c:\\a", "é/b", "a/b\n")),
    ],
)
def test_names_are_told_from_paths(text, parsed):
    assert HubName.parse(text) == (None if parsed is None else HubName(*parsed))
    assert parsed is None or str(HubName(*parsed)) == text


def test_existing_paths_win(hub, tmp_path, monkeypatch):
    path = Path("user", "cells")
    path.parent.mkdir()
    path.write_bytes(b"local")
    assert locate_checkpoint("user/cells") == path
    monkeypatch.setenv("WHERE", str(tmp_path / "here"))
    assert locate_checkpoint("$WHERE/user/cells") == tmp_path / "here" / path
    # A file of this very name comes before the variable.
    Path("$WHERE").write_bytes(b"odd")
    assert locate_checkpoint("$WHERE") == Path("$WHERE")
    assert hub.requests == []


def test_names_beside_a_folder_of_their_user_are_paths_unless_they_name_a_file_or_a_revision(hub):
    Path("user").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file user/cells"):
        locate_checkpoint("user/cells")
    assert hub.requests == []
    assert locate_checkpoint("user/cells:model.safetensors").read_bytes() == b"weights" * 1000


@pytest.mark.parametrize(
    "source", ["gone.pth", "runs/gone.pt", "./user/cells", "a/b/c", Path("user/cells"), "s3://a/b"]
)
def test_what_is_neither_there_nor_a_name_raises_without_a_request(source, hub):
    with pytest.raises(FileNotFoundError, match=r"there is no file (gone|runs/gone|user/cells|a/b/c|s3:)"):
        locate_checkpoint(source)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("source", "reason"), [("a\0b", "embedded null"), ("x" * 300, "too long"), ("$GONE_/a", "GONE_")]
)
def test_impossible_paths_are_refused(source, reason, hub):
    with pytest.raises(FileError, match=reason):
        locate_checkpoint(source)


def test_a_folder_stands_for_its_checkpoint(tmp_path):
    for name in ("other.pth", "last.pt", "best.pt", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
        assert locate_checkpoint(tmp_path) == tmp_path / name
    (tmp_path / "few").mkdir()
    with pytest.raises(FileError, match=r"few .*holds no checkpoint, no file that ends in \.pth"):
        locate_checkpoint(tmp_path / "few")
    for name in ("b.pth", "a.ckpt"):
        (tmp_path / "few" / name).touch()
    with pytest.raises(FileError, match=r"few .*holds several checkpoints, name one: a\.ckpt, b\.pth"):
        locate_checkpoint(tmp_path / "few")


def test_a_repository_is_downloaded_once(hub, tmp_path):
    path = locate_checkpoint("user/cells")
    assert (path.name, path.read_bytes()) == ("model.safetensors", b"weights" * 1000)
    assert path.is_relative_to(tmp_path / "cache")
    assert locate_checkpoint("user/cells") == path
    assert hub.requests.count(("GET", "/user/cells/resolve/main/model.safetensors")) == 1
    assert locate_checkpoint("user/cells", cache_dir=tmp_path / "other").is_relative_to(tmp_path / "other")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["pytorch_model.bin", "a.pth"], "pytorch_model.bin"),
        (["last.pt", "best.pt"], "best.pt"),
        (["folder/dino.pth", "README.md"], "folder/dino.pth"),
    ],
)
def test_files_of_other_names_are_found(files, expected, hub):
    hub.repositories["user/cells"] = {name: name.encode() for name in files}
    assert locate_checkpoint("user/cells").read_bytes() == expected.encode()


def test_revisions_and_files_are_chosen(hub):
    hub.repositories["user/cells"] |= {"a.pth": b"a", "sub/b.pth": b"b"}
    assert locate_checkpoint("user/cells:sub/b.pth").read_bytes() == b"b"
    assert locate_checkpoint(f"user/cells@{COMMIT}:a.pth").read_bytes() == b"a"
    with pytest.raises(FileNotFoundError, match="user/cells on the Hub has no revision 'v9'"):
        locate_checkpoint("user/cells@v9")
    with pytest.raises(FileNotFoundError, match=r"user/cells on the Hub has no file 'c\.pth'"):
        locate_checkpoint("user/cells:c.pth")


def test_repositories_without_one_checkpoint_are_described(hub):
    hub.repositories["user/cells"] = {"README.md": b""}
    with pytest.raises(FileError, match="user/cells holds no checkpoint"):
        locate_checkpoint("user/cells")
    hub.repositories["user/cells"] = {"b.pth": b"", "a.pth": b""}
    with pytest.raises(FileError, match=r"user/cells holds several checkpoints, name one: a\.pth, b\.pth"):
        locate_checkpoint("user/cells")


def test_refusals_of_the_hub_are_told(hub):
    with pytest.raises(FileNotFoundError, match=r"no file user/gone, and no repository on the Hub .*HF_TOKEN"):
        locate_checkpoint("user/gone")
    hub.gated.add("user/cells")
    with pytest.raises(PermissionError, match=r"user/cells is gated: accept its conditions .*HF_TOKEN"):
        locate_checkpoint("user/cells")
    hub.gated.clear()
    with pytest.raises(FileNotFoundError, match=r"it is no name on the Hub"):
        locate_checkpoint("user/a--b")
    hub.statuses["/user/cells/resolve/main/model.safetensors"] = 500
    with pytest.raises(ConnectionError, match=r"user/cells:model\.safetensors .*500"):
        locate_checkpoint("user/cells:model.safetensors")


def test_a_transfer_that_ends_early_leaves_nothing_to_read(hub, tmp_path):
    hub.truncated.add("/user/cells/resolve/main/model.safetensors")
    with pytest.raises(ConnectionError, match=r"user/cells:model\.safetensors cannot be downloaded from the Hub"):
        locate_checkpoint("user/cells")
    assert list((tmp_path / "cache").rglob("model.safetensors")) == []
    hub.truncated.clear()
    assert locate_checkpoint("user/cells").read_bytes() == b"weights" * 1000


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "best.pt"])
def test_earlier_downloads_serve_without_a_connection(name, hub, monkeypatch, tmp_path):
    hub.repositories["user/cells"] = {name: b"weights"}
    path = locate_checkpoint("user/cells")
    point_hub_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert locate_checkpoint("user/cells") == path
    assert locate_checkpoint("user/cells", local_files_only=True) == path
    with pytest.raises(
        ConnectionError, match=r"user/other.* has not been downloaded before, and the Hub cannot be reached"
    ):
        locate_checkpoint("user/other")
    with pytest.raises(FileNotFoundError, match=r"user/other.* has not been downloaded before"):
        locate_checkpoint("user/other", local_files_only=True)


def test_names_without_huggingface_hub_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r'no file user/cells, .*pip install "deformdetr\[hub\]"') as caught:
        locate_checkpoint("user/cells")
    assert caught.value.name == "huggingface_hub"


@pytest.mark.slow
def test_variables_of_a_new_process_choose_the_hub_and_its_cache(tmp_path):
    program = "from deformdetr.integrations import locate_checkpoint; print(locate_checkpoint('user/cells'))"
    with serving() as server:
        server.repositories["user/cells"] = {"model.safetensors": b"weights"}
        variables = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    found = Path(done.stdout.strip())
    assert found.is_relative_to(tmp_path / "cache")
    assert found.read_bytes() == b"weights"
