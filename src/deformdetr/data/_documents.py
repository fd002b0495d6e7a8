"""Annotation files in COCO format: as a whole, or with lists that are decoded piece by piece."""

import gc
import mmap
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from deformdetr._files import FileError, parse_json, read_json
from deformdetr.data._errors import DatasetError

_LISTS = ("images", "annotations", "categories")
_PIECE_BYTES = 2**20
_KEPT_PIECES = 2
# What separates two objects. It may occur inside of an entry too: what precedes it is then not a valid list.
_SEPARATOR = re.compile(rb"\}\s*,\s*\{")
_MAX_ATTEMPTS = 16
_KEY = re.compile(rb'"\s*:')


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
        start: Offset of the opening bracket.
        end: Offset behind the closing bracket.
    """

    def __init__(self, content: mmap.mmap, start: int, end: int) -> None:
        self._content = content
        self._next, self._end = start + 1, end - 1
        self._spans: list[tuple[int, int]] = []
        self._first = [0]
        self._recent: dict[int, list[Any]] = {}

    def __iter__(self) -> Iterator[Any]:
        for piece in count():
            if piece == len(self._spans) and self._next >= self._end:
                return
            yield from self._piece(piece)

    def __getitem__(self, number: int, /) -> Any:
        piece = bisect_right(self._first, number) - 1
        return self._piece(piece)[number - self._first[piece]]

    def _piece(self, piece: int) -> list[Any]:
        if piece not in self._recent:
            while len(self._recent) >= _KEPT_PIECES:
                del self._recent[next(iter(self._recent))]
            entries = self._decode(*self._spans[piece]) if piece < len(self._spans) else self._decode_next()
            # Otherwise all pages of the file that were read would count as memory of this process.
            if hasattr(mmap, "MADV_DONTNEED"):
                self._content.madvise(mmap.MADV_DONTNEED)
            self._recent[piece] = entries
        return self._recent[piece]

    def _decode_next(self) -> list[Any]:
        """Decode the next piece, and remember where it lies.

        Raises:
            NeedsWholeError: If it cannot be decoded.
        """
        start, after = self._next, self._next + _PIECE_BYTES
        for _ in range(_MAX_ATTEMPTS):
            separator = _SEPARATOR.search(self._content, after, self._end)
            end, after = (self._end, self._end) if separator is None else (separator.start() + 1, separator.end() - 1)
            try:
                entries = self._decode(start, end)
            except (ValueError, RecursionError):
                continue
            self._next = after
            self._spans.append((start, end))
            self._first.append(self._first[-1] + len(entries))
            return entries
        raise NeedsWholeError("a list is not valid JSON, or has a key twice in one object")

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
        values = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        spans = {key: _span(values[key], content) for key in _LISTS}
        # The rest of the text is short. If a key occurs twice, it is in there.
        rest, position = b"", 0
        for start, end in sorted(spans.values()):
            rest += content[position:start] + b"[]"
            position = end
        found = parse_json((rest + content[position:]).decode())
    except (LookupError, OSError, ValueError, RecursionError) as error:
        raise NeedsWholeError(str(error)) from error
    if any(content[start] != ord("[") or found[key] != [] for key, (start, _) in spans.items()):
        raise NeedsWholeError("not every list is a list")
    content.madvise(mmap.MADV_DONTNEED)
    document = Document(*(Entries(content, *spans[key]) for key in _LISTS))
    if not any(True for _ in document.images):
        raise NeedsWholeError("there are no images")
    return document


def _span(value: msgspec.Raw, content: mmap.mmap) -> tuple[int, int]:
    """Return the offsets of the first byte of a value, and behind its last."""
    first, base = (np.frombuffer(each, np.uint8).__array_interface__["data"][0] for each in (value, content))
    return first - base, first - base + len(memoryview(value))


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    return sum(map(_count_keys, value)) if isinstance(value, list) else 0
