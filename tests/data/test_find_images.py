import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from deformdetr.data import find_images, image_suffixes


def test_files_are_taken_as_given_and_named_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.webp", "odd.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "odd.txt", tmp_path, str(tmp_path / "b.png")])
    assert found.images == [tmp_path / name for name in ("odd.txt", "a.jpg", "b.png", "sub/c.webp")]
    assert found.others == [tmp_path / "odd.txt"]


def test_hidden_folders_are_left_out_but_not_hidden_parents(tmp_path: Path) -> None:
    folder = tmp_path / ".cache"
    (folder / ".git").mkdir(parents=True)
    (folder / "a.png").touch()
    (folder / ".git" / "b.png").touch()
    assert find_images([folder]) == ([folder / "a.png"], [folder / ".git" / "b.png"])


def test_missing_paths_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.png, .*y"):
        find_images([tmp_path / "x.png", tmp_path, tmp_path / "y"])


def test_suffixes_are_those_of_pictures() -> None:
    assert {".jpg", ".jfif", ".png", ".webp", ".tif", ".gif", ".bmp", ".ppm"} <= image_suffixes()
    assert image_suffixes().isdisjoint({".pdf", ".mpg", ".h5", ".txt", ""})


def test_links_to_folders_are_followed_and_each_folder_is_searched_once(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").touch()
    (tmp_path / "photos" / "own").mkdir(parents=True)
    for name, target in (("one", "disk"), ("two", "disk"), ("own/up", "photos")):
        (tmp_path / "photos" / name).symlink_to(tmp_path / target)
    assert find_images(tmp_path / "photos") == ([tmp_path / "photos" / "one" / "a.png"], [])


@pytest.mark.parametrize("link", ["all", "images/again", ".latest"])
def test_links_within_a_folder_change_no_names(tmp_path: Path, link: str) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "deep" / "a.png").touch()
    (tmp_path / link).symlink_to(tmp_path / "images")
    assert find_images(tmp_path) == ([tmp_path / "images" / "deep" / "a.png"], [])


@pytest.mark.parametrize("name", ["photos", ".trash"])
def test_folders_that_cannot_be_read_are_errors_unless_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    scan = os.scandir

    def refuse(path: Path | str) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    # Root may read all folders of the tests.
    monkeypatch.setattr(os, "scandir", refuse)
    with nullcontext() if name.startswith(".") else pytest.raises(PermissionError, match="Permission denied"):
        assert find_images(tmp_path) == ([], [])
