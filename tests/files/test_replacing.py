"""Atomic writing of files."""

import os
import stat

import pytest
import torch
from PIL import Image

from deformdetr._files import keep_as, replacing, write_mapping, write_tensor_file, write_tensors, write_text
from deformdetr.visualize import save_image
from disks import disk_space

NUMBERS = {"a": torch.zeros(5000)}
WRITERS = {
    "file.txt": lambda path: write_text(path, "x" * 20_000),
    "file.json": lambda path: write_mapping(path, {"a": "x" * 20_000}),
    "file.yaml": lambda path: write_mapping(path, {"a": "x" * 20_000}),
    "file.pt": lambda path: write_tensor_file(NUMBERS, path),
    "file.pth": lambda path: write_tensors(NUMBERS, path),
    "file.safetensors": lambda path: write_tensors(NUMBERS, path),
    "file.png": lambda path: save_image(Image.effect_noise((200, 200), 90), path),
}


@pytest.fixture(params=WRITERS.items(), ids=lambda item: item[0])
def writer(request, tmp_path):
    """Return a path and a function that writes more than 10 kB to it."""
    name, write = request.param
    return tmp_path / name, write


def test_content_is_replaced(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("first", "zweitens: ä"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_is_reported_with_the_file_and_changes_nothing(writer, exists):
    path, write = writer
    if exists:
        path.write_bytes(b"old")
    with disk_space(3000), pytest.raises(OSError, match=r"cannot be written: .*File too large") as caught:
        write(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each.read_bytes() for each in path.parent.iterdir()] == [b"old"] * exists
    write(path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("place", ["nowhere/file", "file.txt/file"])
def test_a_missing_folder_is_named(writer, place, tmp_path):
    (tmp_path / "file.txt").write_text("old")
    path, write = writer
    with pytest.raises(OSError, match=r"cannot be written: (No such file|Not a directory)") as caught:
        write(tmp_path / f"{place}{path.suffix}")
    assert str(tmp_path / place) in str(caught.value)


def test_a_read_only_folder_is_named(writer):
    path, write = writer
    path.write_bytes(b"old")
    path.parent.chmod(0o500)
    try:
        if os.access(path.parent, os.W_OK):
            # Root can write everywhere except to what is not a file.
            path = path.with_name("null" + path.suffix)
            path.symlink_to("/proc/self/nothing")
        with pytest.raises(OSError, match="cannot be written"):
            write(path)
    finally:
        path.parent.chmod(0o700)
    assert [each.name for each in path.parent.iterdir() if "unfinished" in each.name] == []


def test_only_regular_files_are_replaced(writer, tmp_path):
    path, write = writer
    os.mkfifo(path)
    with pytest.raises(FileExistsError, match="a folder, a device or a pipe"):
        write(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    device = tmp_path / f"device{path.suffix}"
    device.symlink_to("/dev/null")
    with pytest.raises(FileExistsError, match="a folder, a device or a pipe"):
        write(device)
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_symbolic_link_is_kept_and_its_target_replaced(writer, tmp_path):
    path, write = writer
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    target.write_bytes(b"old")
    path.symlink_to(target)
    write(path)
    assert path.is_symlink()
    assert target.stat().st_size > 1000
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["elsewhere", path.name])


def test_a_file_may_have_the_longest_name(writer, tmp_path):
    path, write = writer
    longest = tmp_path / ("a" * (255 - len(path.suffix)) + path.suffix)
    write(longest)
    assert longest.stat().st_size > 1000


def test_other_errors_are_passed_on(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="stack expects a non-empty"), replacing(tmp_path / "a"):
        torch.stack([])
    with pytest.raises(AttributeError, match="local object"):
        write_tensor_file(lambda: None, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_text_that_utf_8_cannot_encode_is_escaped(tmp_path):
    write_text(tmp_path / "a.json", f'"{os.fsdecode(b"a" + bytes([0x80]))}"')
    assert (tmp_path / "a.json").read_text() == '"a\\udc80"'


@pytest.mark.parametrize("has_links", [True, False])
def test_second_name_keeps_the_content_that_is_replaced(tmp_path, monkeypatch, has_links):
    path, other = tmp_path / "last", tmp_path / "previous"
    if not has_links:
        monkeypatch.setattr(os, "link", _refuse_links)
    for text in ("first", "second", "third"):
        if path.exists():
            # Twice, as after a kill between both steps.
            keep_as(path, other)
            keep_as(path, other)
        write_text(path, text)
    assert (path.read_text(), other.read_text()) == ("third", "second")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last", "previous"]


def _refuse_links(*arguments, **options):
    raise PermissionError(1, "Operation not permitted")
