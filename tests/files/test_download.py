"""Downloads from a server on this machine: whole files, each once, and errors that say what to do."""

import hashlib
import re
import socket
import urllib.request
from pathlib import Path

import pytest
import torch

from deformdetr._files import FileError, download_once, locate_checkpoint
from disks import disk_space
from local_server import Server, serving

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with serving() as server:
        yield server


def downloads(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]


def test_a_url_is_downloaded_once_below_the_folder_of_torch_hub(server, tmp_path):
    server.files["/a/my model.pth"] = CONTENT
    url = f"{server.url}/a/my%20model.pth?version=2"
    path = locate_checkpoint(url)
    assert (path.name, path.read_bytes()) == ("my model.pth", CONTENT)
    assert path.is_relative_to(torch.hub.get_dir())
    assert locate_checkpoint(url) == path
    assert server.requests == [("GET", "/a/my model.pth")]
    assert downloads(tmp_path) == [path]


def test_urls_that_end_in_one_name_do_not_share_a_file(server):
    server.files |= {"/a/model.pth": b"a", "/b/model.pth": b"b"}
    urls = [f"{server.url}/{folder}/model.pth" for folder in "ab"] + [f"{server.url}/b/model.pth?id=3"]
    assert [locate_checkpoint(url).read_bytes() for url in urls] == [b"a", b"b", b"b"]
    assert len({locate_checkpoint(url) for url in urls}) == 3


def test_a_url_without_a_name_is_downloaded(server):
    server.files["/"] = CONTENT
    assert locate_checkpoint(server.url).read_bytes() == CONTENT
    assert locate_checkpoint(server.url.replace("http", "HTTP")).read_bytes() == CONTENT


def test_content_of_unannounced_size_is_downloaded(server):
    server.files["/model.pth"] = CONTENT
    server.chunked.add("/model.pth")
    assert locate_checkpoint(f"{server.url}/model.pth").read_bytes() == CONTENT


def test_urls_of_files_are_read_in_place(tmp_path):
    path = tmp_path / "my model.pth"
    path.write_bytes(b"weights")
    assert locate_checkpoint(path.as_uri()) == path
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.pth"):
        locate_checkpoint((tmp_path / "gone.pth").as_uri())
    with pytest.raises(FileError, match="names the host 'elsewhere'"):
        locate_checkpoint("file://elsewhere/model.pth")


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, FileNotFoundError, r"there is nothing at http://.*/model\.pth \(HTTP 404 Not Found\)"),
        (410, FileNotFoundError, r"there is nothing at .* \(HTTP 410 Gone\)"),
        (401, PermissionError, r"without a login \(HTTP 401 .*; download it another way and save it as /.*/model\.pth"),
        (403, PermissionError, r"without a login \(HTTP 403 "),
        (
            503,
            ConnectionError,
            r"cannot be downloaded: HTTP 503 Service Unavailable; download it another way and save it",
        ),
    ],
)
def test_refusals_of_the_server_are_told(status, error, message, server, tmp_path):
    server.statuses["/model.pth"] = status
    with pytest.raises(error, match=message):
        locate_checkpoint(f"{server.url}/model.pth")
    assert downloads(tmp_path) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_transfer_that_ends_early_leaves_nothing(chunked, server, tmp_path):
    server.files["/model.pth"] = CONTENT
    server.truncated.add("/model.pth")
    server.chunked |= {"/model.pth"} if chunked else set()
    reason = "the transfer broke off" if chunked else r"the transfer ended after 640,000 of 1,280,000 bytes"
    with pytest.raises(ConnectionError, match=reason):
        locate_checkpoint(f"{server.url}/model.pth")
    assert downloads(tmp_path) == []
    # The next try starts anew.
    server.truncated.clear()
    assert locate_checkpoint(f"{server.url}/model.pth").read_bytes() == CONTENT


def test_a_hash_in_the_name_is_compared(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    wrong, right = "model-0badc0de.pth", f"model-{digest[:8]}.pth"
    server.files |= dict.fromkeys((f"/{wrong}", f"/{right}", "/model-20221029.pth"), CONTENT)
    with pytest.raises(
        ConnectionError, match=rf"promises a SHA-256 of 0badc0de\.\.\., but the content has {digest[:8]}"
    ):
        locate_checkpoint(f"{server.url}/{wrong}")
    assert downloads(tmp_path) == []
    # A date is no hash.
    for name in (right, "model-20221029.pth"):
        assert locate_checkpoint(f"{server.url}/{name}").read_bytes() == CONTENT


def test_without_a_connection_the_error_says_where_to_put_the_file(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/model.pth"
        path = tmp_path / "model.pth"
        with pytest.raises(ConnectionError, match=r"cannot be downloaded: Connection refused") as caught:
            download_once(url, path)
    assert re.search(rf"{re.escape(url)} .*save it as {re.escape(str(path))}$", str(caught.value))
    path.write_bytes(b"from elsewhere")
    assert download_once(url, path).read_bytes() == b"from elsewhere"


def test_a_server_that_does_not_speak_http_is_an_error(tmp_path, monkeypatch):
    def answer(request, timeout):
        assert timeout
        raise urllib.error.URLError("unknown url type")

    monkeypatch.setattr("deformdetr._files._download.urlopen", answer)
    with pytest.raises(ConnectionError, match="cannot be downloaded: unknown url type"):
        download_once("http://host/model.pth", tmp_path / "model.pth")


def test_a_full_disk_is_not_taken_for_a_failed_transfer(server, tmp_path):
    server.files["/model.pth"] = CONTENT
    with disk_space(1000), pytest.raises(OSError, match=r"model\.pth"):
        download_once(f"{server.url}/model.pth", tmp_path / "model.pth")
    assert list(tmp_path.glob("*.pth")) == []


def test_invalid_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileError, match=r"http://\[host/model\.pth is not a valid URL"):
        locate_checkpoint("http://[host/model.pth")
    with pytest.raises(ConnectionError, match=r"host:port/.* cannot be downloaded: nonnumeric port"):
        locate_checkpoint("http://host:port/model.pth")
