"""Images in shards: tar files in a folder or at a URL, with an index of where each image lies."""

import re
import secrets
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from jaxtyping import Int64

from deformdetr._files import FileError, cache_folder, download_once, expand_path, read_range, where_from
from deformdetr.data._containment import OUTSIDE
from deformdetr.data._errors import DatasetError, Kind, Problems
from deformdetr.data._index import hash_of, read_arrays, short_hash, write_arrays

ANNOTATIONS, INDEX = "annotations.json", "index.safetensors"
_AGAIN = "`deformdetr shards --output FOLDER` writes the index again"
_DAMAGED = Kind("shards that are not as the index says", f"an interrupted copy, or a shard written again? {_AGAIN}")


class Places(NamedTuple):
    """Where each image lies. Images are in the order of the annotation file."""

    shard: Int64[np.ndarray, " images"]
    """Number of the shard, from 0."""
    offset: Int64[np.ndarray, " images"]
    size: Int64[np.ndarray, " images"]
    """In bytes, like the offset from the beginning of the shard."""
    crc32: Int64[np.ndarray, " images"]
    """Checksum of the content."""


class ShardIndex(NamedTuple):
    """What shards hold."""

    names: list[str]
    """File name of each shard."""
    sizes: list[int]
    """Bytes of each shard."""
    annotations: str
    """Hash of the annotation file."""
    places: Places

    def write(self, file: Path) -> None:
        """Write the index, atomically."""
        shards = list(zip(self.names, self.sizes, strict=True))
        write_arrays(file, {"shards": shards, "annotations": self.annotations}, self.places._asdict())

    @classmethod
    def read(cls, file: Path, location: str) -> "ShardIndex":
        """Read an index, which may come from anywhere.

        Raises:
            DatasetError: If there is none, or it contradicts itself.
            FileError: If it is damaged.
        """
        try:
            details, arrays = read_arrays(file, Places._fields)
            names, sizes = zip(*((str(name), int(size)) for name, size in details["shards"]), strict=True)
            index = cls(list(names), list(sizes), str(details["annotations"]), Places(**arrays))
        except FileNotFoundError as error:
            raise DatasetError(f"{location} has no {INDEX}; {_AGAIN}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise DatasetError(f"{location}/{INDEX} is not an index of shards: {error}") from error
        if not index._is_sound():
            raise DatasetError(f"{location}/{INDEX} is not an index of shards: its numbers contradict each other")
        return index

    def _is_sound(self) -> bool:
        columns = self.places
        if any(column.dtype != np.int64 or column.shape != columns.size.shape for column in columns):
            return False
        if re.fullmatch("[0-9a-f]{128}", self.annotations) is None or min(self.sizes) < 0:
            return False
        is_known = (columns.shard >= 0) & (columns.shard < len(self.sizes))
        if not is_known.all() or (columns.offset < 0).any() or (columns.size <= 0).any():
            return False
        return bool((columns.offset <= np.array(self.sizes)[columns.shard] - columns.size).all())


class Shards:
    """The shards of one split.

    Args:
        location: Folder, or address that begins with http:// or https://. Variables in the path of a folder are
            expanded.
        cache: Folder that keeps images from a URL, or `None`.
        cache_bytes: Most bytes that are kept: of the images in the first shards that together have no more.

    Attributes:
        annotations: The annotation file, or a copy of it.

    Raises:
        DatasetError: If index, annotations or shards are missing or do not belong together.
    """

    def __init__(self, location: str, *, cache: Path | None, cache_bytes: float) -> None:
        self._url = location.rstrip("/") if re.match(r"https?://", location, re.IGNORECASE) else None
        try:
            if self._url is None:
                self._folder = expand_path(location)
                index = self._open_folder(location)
            else:
                index = self._open_url(self._url)
        except (FileError, OSError) as error:
            raise DatasetError(str(error)) from error
        self._names, self._places = index.names, index.places
        self._check_shards(index.sizes)
        self._cache = None
        if cache is not None and self._url is not None:
            self._cache = cache / short_hash(self._url, index.annotations)
        self._num_kept = int(np.searchsorted(np.cumsum(index.sizes), cache_bytes, side="right"))

    def __len__(self) -> int:
        return len(self._places.size)

    def path(self, name: str) -> str:
        """Return where an image is, for messages: shard and member, as in the annotation file."""
        return f"{self._folder if self._url is None else self._url}/{name}"

    def read(self, index: int, path: str) -> bytes:
        """Return the content of an image.

        Args:
            index: Position of the image.
            path: As `path` returns it.

        Raises:
            DatasetError: If it cannot be fetched, or is not what the index was written for.
        """
        shard, offset, size, checksum = (int(column[index]) for column in self._places)
        kept = None
        if self._cache is not None and shard < self._num_kept:
            kept = self._cache / self._names[shard] / str(offset)
        try:
            if kept is not None and kept.is_file() and zlib.crc32(content := kept.read_bytes()) == checksum:
                return content
            content = self._fetch(self._names[shard], offset, size)
            if zlib.crc32(content) != checksum:
                raise DatasetError(f"{path}: the shard has changed since its index was written; {_AGAIN}")
            if kept is not None:
                _keep(kept, content)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error}") from error
        return content

    def _fetch(self, shard: str, offset: int, size: int) -> bytes:
        if self._url is not None:
            return read_range(f"{self._url}/{quote(shard)}", offset, size)
        with (self._folder / shard).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _open_folder(self, location: str) -> ShardIndex:
        if re.match(r"\w+://", location):
            raise DatasetError(f"{location} is neither a folder nor an address that begins with http:// or https://")
        if not self._folder.is_dir():
            raise DatasetError(f"there is no folder {self._folder}{where_from(self._folder)}")
        index = ShardIndex.read(self._folder / INDEX, str(self._folder))
        self.annotations = self._folder / ANNOTATIONS
        _check_annotations(self.annotations, index)
        return index

    def _open_url(self, url: str) -> ShardIndex:
        """Fetch the index, and the annotations unless there is a copy of the same content."""
        with TemporaryDirectory() as folder:
            index = ShardIndex.read(download_once(f"{url}/{INDEX}", Path(folder, INDEX)), url)
            # The arrays are mapped, and their file is temporary.
            index = index._replace(places=Places(*(column.copy() for column in index.places)))
        readable = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).netloc + urlsplit(url).path))[-100:]
        self.annotations = cache_folder().with_name("shards") / readable / index.annotations[:16] / ANNOTATIONS
        download_once(f"{url}/{ANNOTATIONS}", self.annotations)
        try:
            _check_annotations(self.annotations, index)
        except DatasetError:
            self.annotations.unlink()
            raise
        return index

    def _check_shards(self, sizes: Sequence[int]) -> None:
        """Check the names of the shards, and in a folder also their sizes. At a URL, reading shows those."""
        problems = Problems()
        for name, size in zip(self._names, sizes, strict=True):
            where = self.path(name)
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                problems.report(f"{INDEX} names the shard {name!r:.200}", OUTSIDE)
            elif self._url is None:
                try:
                    found = (self._folder / name).stat().st_size
                except OSError as error:
                    problems.report(f"{where}: {error.strerror}", _DAMAGED)
                    continue
                if found != size:
                    problems.report(f"{where} has {found:,} bytes, and {size:,} when it was indexed", _DAMAGED)
        problems.refuse()


def _check_annotations(file: Path, index: ShardIndex) -> None:
    if hash_of(file) != index.annotations:
        raise DatasetError(f"{file} is not the one that {INDEX} was written with; {_AGAIN}")


def _keep(file: Path, content: bytes) -> None:
    """Write a file of the cache. Without a flush, since its checksum is compared when it is read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
