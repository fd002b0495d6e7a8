"""Annotation files in COCO format: as a whole, or with lists that are decoded piece by piece."""

import gc
import json
import mmap
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from deformdetr._files import FileError, parse_json, read_json
from deformdetr.data._errors import DatasetError

_LISTS = ("images", "annotations", "categories")
_PIECE_BYTES = 2**20
_KEPT_PIECES = 2
# What separates two objects. It may occur inside of an entry too: what precedes it is then not a valid list.
_SEPARATOR = re.compile(rb"\}\s*,\s*\{")
_MAX_ATTEMPTS = 16
_KEY = re.compile(rb'"\s*:')
_LIST = re.compile(rb'"(%b)"\s*:\s*\[' % "|".join(_LISTS).encode())


class NeedsWholeError(ValueError):
    """A file must be read by `load_document`, which says what is wrong with it, or accepts what is unusual."""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from looking at all objects of the process again and again. JSON has no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Entries:
    """The entries of a list in a JSON file, of which only some pieces are in memory at a time.

    Args:
        content: The file.
        spans: Offsets of the first byte of each piece, and behind its last.
    """

    def __init__(self, content: mmap.mmap, spans: list[tuple[int, int]]) -> None:
        self._content = content
        self._spans = spans
        self._first = [0]
        self._recent: dict[int, list[Any]] = {}

    def __iter__(self) -> Iterator[Any]:
        for piece in range(len(self._spans)):
            entries = self._piece(piece)
            if piece == len(self._first) - 1:
                self._first.append(self._first[-1] + len(entries))
            yield from entries

    def __getitem__(self, number: int, /) -> Any:
        piece = bisect_right(self._first, number) - 1
        return self._piece(piece)[number - self._first[piece]]

    def _piece(self, piece: int) -> list[Any]:
        """Return the entries of a piece.

        Raises:
            NeedsWholeError: If they cannot be decoded, or a key occurs twice in one object.
        """
        if piece not in self._recent:
            while len(self._recent) >= _KEPT_PIECES:
                del self._recent[next(iter(self._recent))]
            try:
                self._recent[piece] = self._decode(*self._spans[piece])
            except (ValueError, RecursionError) as error:
                raise NeedsWholeError(str(error)) from error
            _release(self._content)
        return self._recent[piece]

    def _decode(self, start: int, end: int) -> list[Any]:
        """Return the entries between two offsets.

        Raises:
            ValueError: If they are no valid list, or a key occurs twice in one object.
        """
        text = b"[%b]" % self._content[start:end]
        entries: list[Any] = msgspec.json.decode(text)
        are_flat = set(map(type, entries)) == {dict} and text.count(b"{") == len(entries)
        keys = sum(map(len, entries)) if are_flat else _count_keys(entries)
        # Every key is followed by a colon. Values may have more of them, but seldom behind a quotation mark.
        if text.count(b":") != keys and len(_KEY.findall(text)) != keys:
            raise ValueError("a key may occur twice in one object")
        return entries


EntryList: TypeAlias = list[Any] | Entries


class Document(NamedTuple):
    """The lists of a COCO annotation file."""

    images: EntryList
    annotations: EntryList
    categories: EntryList


def load_document(path: Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file. Files of test images may have no `annotations`.

    Raises:
        DatasetError: If the file cannot be read, is empty, is not JSON or not in COCO format, or has no images.
    """
    try:
        document = read_json(path)
    except (FileError, FileNotFoundError) as error:
        raise DatasetError(str(error)) from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path} is not a COCO annotation file: it holds a {type(document).__name__}, not an object")
    document.setdefault("annotations", [])
    for key in _LISTS:
        if not isinstance(document.get(key), list):
            found = f"{key!r} is {document[key]!r:.60}" if key in document else f"it has no {key!r}"
            raise DatasetError(f"{path} is not a COCO annotation file: {found}, and a list is needed")
    if not document["images"]:
        raise DatasetError(f"{path} has no images")
    return document


def whole_document(path: Path) -> Document:
    """Return the lists that `load_document` reads, with its errors."""
    document = load_document(path)
    return Document(*(document[key] for key in _LISTS))


def open_document(path: Path) -> Document:
    """Return the lists of a large COCO annotation file. Their entries are decoded when they are iterated over.

    Raises:
        NeedsWholeError: If `load_document` must be called instead. Iterating over a list may raise it too.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        lists: dict[str, Entries] = {}
        # The rest of the text is short. If a key occurs twice, or lies within another value, that shows in there.
        rest, position = b"", 0
        while start := _LIST.search(content, position):
            spans, end = _cut(content, start.end())
            lists[start[1].decode()] = Entries(content, spans)
            rest += content[position : start.end()] + b"]"
            position = end
        found = parse_json((rest + content[position:]).decode())
        document = Document(*(lists[key] for key in _LISTS))
    except (LookupError, OSError, ValueError, RecursionError) as error:
        raise NeedsWholeError(str(error)) from error
    if not isinstance(found, dict) or any(found.get(key) != [] for key in _LISTS):
        raise NeedsWholeError("not every list is a list of the document itself")
    if not any(True for _ in document.images):
        raise NeedsWholeError("there are no images")
    return document


def _cut(content: mmap.mmap, start: int) -> tuple[list[tuple[int, int]], int]:
    """Cut the list whose opening bracket ends at `start` into pieces. Return their spans, and the end of the list.

    Raises:
        ValueError: If the list cannot be cut, or does not end.
    """
    spans: list[tuple[int, int]] = []
    while True:
        tried = []
        # Behind entries that precede a separator.
        separators = _SEPARATOR.finditer(content, start + _PIECE_BYTES)
        for end in (each.start() + 1 for each in islice(separators, _MAX_ATTEMPTS)):
            tried.append(end)
            # What precedes a separator within an entry, or behind the list, is not valid JSON.
            if _is_list(content, start, end):
                break
        else:
            break
        spans.append((start, end))
        start = content.find(b"{", end)
        _release(content)
    # The list ends before the last of these, or an entry has as many separators.
    limit = tried[-1] if len(tried) == _MAX_ATTEMPTS else len(content)
    text = content[start:limit].decode()
    _, length = json.JSONDecoder().raw_decode(f"[{text}")
    end = start + len(text[: length - 2].encode())
    return [*spans, (start, end)], end + 1


def _is_list(content: mmap.mmap, start: int, end: int) -> bool:
    try:
        msgspec.json.decode(b"[%b]" % content[start:end], type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return True


def _release(content: mmap.mmap) -> None:
    """Unmap the pages that were read. They would count as memory of this process."""
    if hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    return sum(map(_count_keys, value)) if isinstance(value, list) else 0
