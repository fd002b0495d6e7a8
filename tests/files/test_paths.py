"""Expansion and checks of paths."""

import os
from pathlib import Path

import pytest

from deformdetr._files import FileError, check_folder, check_writable, expand_path, fitting_name
from deformdetr._files._paths import check_readable


def test_home_and_variables_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("SPLIT_1", "val")
    assert expand_path(Path("~/x")) == Path("/home/someone/x")
    assert expand_path(Path("$DATA/${SPLIT_1}2/$SPLIT_1.json")) == Path("/data/val2/val.json")
    assert expand_path(Path("plain/x.json")) == Path("plain/x.json")


@pytest.mark.parametrize("written", ["$MISSING/x", "y/${MISSING}/x"])
def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(FileError, match="'MISSING' is not set") as caught:
        expand_path(Path(written))
    assert written in str(caught.value)
    monkeypatch.setenv("MISSING", "")
    with pytest.raises(FileError, match="MISSING"):
        expand_path(Path(written))


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(FileError, match="~nobody-of-this-name/x"):
        expand_path(Path("~nobody-of-this-name/x"))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for name, reason in {
        "pipe": "pipe is not a regular file",
        "device": "device is not a regular file",
        "": "is a folder; name a file in it",
        "loop": "loop cannot be read: Too many levels of symbolic links",
        "a" * 300: "cannot be read: File name too long",
        "a\0b": "cannot be read: .*embedded null",
    }.items():
        with pytest.raises(FileError, match=reason):
            check_readable(tmp_path / name)
    (tmp_path / "file").touch()
    for name in ("nothing", "gone", "file/nothing"):
        with pytest.raises(FileNotFoundError, match=f"there is no file .*{name}"):
            check_readable(tmp_path / name)
    check_readable(tmp_path / "file")


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pth").touch()
    (tmp_path / "folder.pth").mkdir()
    for name, error, reason in (
        ("new.txt", ValueError, r"new\.txt must end in one of \.pth, \.pt"),
        ("old.pth", FileExistsError, r"old\.pth exists already"),
        ("folder.pth", FileExistsError, r"folder\.pth is a folder"),
        ("nowhere/new.pth", FileNotFoundError, "there is no folder .*nowhere"),
    ):
        with pytest.raises(error, match=reason):
            check_writable(tmp_path / name, suffixes=[".pth", ".pt"], overwrite=False)
    check_writable(tmp_path / "old.pth", suffixes=[".pth"], overwrite=True)
    check_writable(tmp_path / "new.pth", suffixes=[".pth"], overwrite=False)


def test_a_file_within_a_path_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.touch()
    for path in (file, file / "run" / "deeper"):
        with pytest.raises(NotADirectoryError, match=r"a\.txt is a file, and a folder is needed"):
            check_folder(path)


def test_folders_that_may_not_be_written_to_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "read only"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    # Root may write to every folder of the tests.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() != folder)
    for name in ("", "new", "new/deeper"):
        with pytest.raises(PermissionError, match=f"the folder {folder} may not be written to"):
            check_folder(folder / name)
    for name in ("read only/new.pth", "read only/old.pth"):
        with pytest.raises(PermissionError, match="the folder read only may not be written to"):
            check_writable(Path(name), suffixes=[".pth"], overwrite=True)
    check_folder(Path())
    check_folder(Path("new", "deeper"))


@pytest.mark.parametrize("stem", ["short", "x" * 300, "é" * 200, "名" * 100, "\udcff" * 260])
def test_long_names_are_shortened_to_what_file_systems_allow(stem, tmp_path):
    name = fitting_name(stem, "_1.png")
    assert name.endswith("_1.png")
    assert stem.startswith(name.removesuffix("_1.png"))
    assert len(os.fsencode(name)) in range(min(len(os.fsencode(stem)) + 6, 252), 256)
    (tmp_path / name).touch()
