"""Annotation files are cut into pieces where their lists say so, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest

from deformdetr.data import _documents
from deformdetr.data._documents import NeedsWholeError, open_document

_IMAGES = [{"id": number, "file_name": f"ä{number}.png", "note": '}, {"x", [{'} for number in range(9)]
_PARTS = [{"id": number, "parts": [{"n": 1}, {"n": 2}, {"n": [{"m": []}, {}]}], "name": "}]"} for number in range(9)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_documents, "_PIECE_BYTES", 64)


def cut(path: Path, text: str) -> dict[str, list[Any]]:
    path.write_text(text)
    return {name: list(entries) for name, entries in open_document(path)._asdict().items()}


@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("categories", "annotations", "images")])
@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("annotations", [[], [7, None], _PARTS, _IMAGES[:1], [[_PARTS[:1]]]])
def test_pieces_are_those_of_the_lists(
    tmp_path: Path, order: tuple[str, ...], indent: int | None, annotations: list[Any]
) -> None:
    lists = {"images": _IMAGES, "annotations": annotations, "categories": [{"id": 1, "name": "ü"}]}
    rest = {"info": {"text": '"images": [', 'or "annotations': ["]"]}, "licenses": [{"id": 1}, {"id": 2}]}
    text = json.dumps({**rest, **{name: lists[name] for name in order}, "end": 1}, indent=indent, ensure_ascii=False)
    assert cut(tmp_path / "file.json", text) == lists


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"id": 1}], "annotations": [], "info": {"categories": []}}',
        '{"images": [{"id": 1}], "annotations": [], "categories": [], "info": {"images": []}}',
        '{"images": [{"id": 1}], "annotations": [], "categories": {"a": 1}}',
        '{"images": [{"id": 1}], "annotations": [], "categories": []} {}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1}, "categories": []}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1}}], "categories": []}',
        '[{"images": [{"id": 1}], "annotations": [], "categories": []}]',
        '{"images": [], "annotations": [], "categories": []}',
        "",
    ],
)
def test_what_cannot_be_cut_is_left_to_the_reader_of_whole_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(NeedsWholeError):
        cut(tmp_path / "file.json", text)


def test_an_entry_is_found_by_its_position_after_others_were_read(tmp_path: Path) -> None:
    (path := tmp_path / "file.json").write_text(json.dumps({"images": _PARTS, "annotations": [], "categories": []}))
    images = open_document(path).images
    assert list(images) == list(images) == _PARTS
    assert [images[position] for position in (8, 0, 4)] == [_PARTS[position] for position in (8, 0, 4)]
