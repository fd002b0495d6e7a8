"""Indexing of shards: tar files in which each sample is an image and a JSON file of the same name."""

import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from deformdetr._files import replacing
from deformdetr.data._errors import DatasetError, Kind, Problems
from deformdetr.data._find_images import image_suffixes
from deformdetr.data._ids import parse_id
from deformdetr.data._images import read_header
from deformdetr.data._index import hash_of
from deformdetr.data._shards import ANNOTATIONS, INDEX, Places, ShardIndex

_TRUNCATED = Kind("shards that are not whole tar files", "an interrupted copy, compressed, or several joined?")
_INCOMPLETE = Kind("samples without an image or without their JSON", "names that differ before their first dot?")
_OUTSIDE = Kind("members outside their shard", "absolute names, `..`, links or devices")
_REPEATED = Kind("samples with several members of one name or kind")
_INVALID_JSON = Kind('samples whose JSON is not {"image": {"id": ...}, "annotations": [...], "categories": [...]}')
_UNREADABLE = Kind("samples whose image cannot be read")
_JSON = "json"
_BLOCK = tarfile.BLOCKSIZE


class _Sample(NamedTuple):
    """The members of a sample."""

    image: tarfile.TarInfo
    document: tarfile.TarInfo


class _SampleDocument(msgspec.Struct):
    """The JSON of a sample."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    categories: list[Any] = []


def index_shards(
    folder: str | Path,
    *,
    categories: Sequence[Any] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the index of the shards in a folder, and their annotations as one COCO file.

    Shards are the files `*.tar`, in webdataset's layout: names that are equal up to the first dot after the last slash
    are those of one sample. `0042.jpg` is an image of any format that Pillow reads, and `0042.json` holds
    `{"image": {"id": 42}, "annotations": [...], "categories": [...]}`, with entries as in COCO files. `categories` are
    those of its annotations. Other members are left alone. A missing size is that of the image.

    Args:
        folder: Folder of the shards. The index and the annotation file in it are replaced.
        categories: Entries of categories that may have no annotation.
        progress: Called with the number of shards done and the total.

    Raises:
        DatasetError: If there are no shards or faults in them. Each names shard and member.
        OSError: If a file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deformdetr.data import ShapesConfig, index_shards, write_shapes, write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_shapes(ShapesConfig(num_train=3, num_val=1), folder)
        ...     shards = Path(folder, "shards")
        ...     write_shards(files.val_images, files.val_annotations, shards)
        ...     index_shards(shards)
        ...     sorted(path.name for path in shards.iterdir())
        ['000000.tar', 'annotations.json', 'index.safetensors']
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.tar"))
    if not files:
        raise DatasetError(f"{folder} has no shards: no files *.tar")
    problems = Problems()
    with ExitStack() as stack:
        unfinished = stack.enter_context(replacing(folder / ANNOTATIONS))
        writer = _Writer(stack.enter_context(unfinished.open("wb")), categories)
        for number, file in enumerate(files):
            _index_shard(number, file, writer, problems)
            if progress is not None:
                progress(number + 1, len(files))
        if not writer.images:
            problems.append(f"{folder}: the shards have no samples")
        problems.refuse()
        places = writer.close()
        # An index of other annotations is refused, so that the order of the two does not matter.
        index = ShardIndex(
            [file.name for file in files], [file.stat().st_size for file in files], hash_of(unfinished), places
        )
    index.write(folder / INDEX)


class _Writer:
    """Write samples to a COCO file, annotations first, so that only the entries of images are kept in memory."""

    def __init__(self, file: BinaryIO, categories: Sequence[Any]) -> None:
        self.images: list[bytes] = []
        self._file = file
        self._categories = {msgspec.json.encode(each): None for each in categories}
        self._places: list[tuple[int, int, int, int]] = []
        self._separator = b'{"annotations": ['

    def add(self, document: _SampleDocument, place: tuple[int, int, int, int]) -> None:
        """Add a sample, whose place is shard, offset, size and checksum."""
        self.images.append(msgspec.json.encode(document.image))
        self._places.append(place)
        self._categories |= {msgspec.json.encode(each): None for each in document.categories}
        for row in document.annotations:
            self._file.write(self._separator + msgspec.json.encode({**row, "image_id": document.image["id"]}))
            self._separator = b", "

    def close(self) -> Places:
        """Write the rest of the file, and return where the images lie."""
        start = b"" if self._separator == b", " else self._separator
        self._file.write(start + b'], "images": [' + b", ".join(self.images))
        self._file.write(b'], "categories": [' + b", ".join(self._categories) + b"]}")
        self._file.close()
        return Places(*np.array(self._places, dtype=np.int64).T.copy())


def _index_shard(number: int, file: Path, writer: _Writer, problems: Problems) -> None:
    """Add the samples of one shard."""
    report = partial(problems.report, source=file.name)
    members: list[tarfile.TarInfo] = []
    try:
        _read_members(file, members)
    except (tarfile.TarError, ValueError, EOFError) as error:
        after = f" after {members[-1].name}" if members else ""
        report(f"it is no whole tar file without compression{after}: {error}", _TRUNCATED)
        return
    with file.open("rb") as opened:
        for sample in _samples(members, report):
            try:
                document = _read_document(opened, sample.document)
            except ValueError as error:
                report(f"{sample.document.name}: {error}", _INVALID_JSON)
                continue
            content = _read(opened, sample.image)
            name = f"{file.name}/{sample.image.name}"
            try:
                header = read_header(name, content=content)
            except DatasetError as error:
                report(str(error).removeprefix(f"{file.name}/"), _UNREADABLE)
                continue
            image = document.image
            if not (image.get("height") and image.get("width")):
                image |= {"height": header.height, "width": header.width}
            image["file_name"] = name
            writer.add(document, (number, sample.image.offset_data, len(content), zlib.crc32(content)))


def _read_members(file: Path, members: list[tarfile.TarInfo]) -> None:
    """Append the members of a tar file to a list.

    Raises:
        tarfile.TarError: If it is none, is compressed, or is cut short; or `EOFError` or `ValueError`.
    """
    with tarfile.open(file, "r:") as tar:
        members.extend(tar)
    end = max((each.offset_data + (each.size + _BLOCK - 1) // _BLOCK * _BLOCK for each in members), default=0)
    with file.open("rb") as opened:
        opened.seek(end)
        # Two empty blocks, and as many as fill the last record.
        rest = opened.read()
    if len(rest) < _BLOCK:
        raise ValueError("it ends without the mark of its end")
    if any(rest):
        raise ValueError(f"there is more behind its end at {end:,} bytes")


def _samples(members: list[tarfile.TarInfo], report: Callable[[str, Kind], None]) -> Iterator[_Sample]:
    """Yield the samples of a shard, in the order in which they begin, and report those with faults."""
    images: dict[str, tarfile.TarInfo] = {}
    documents: dict[str, tarfile.TarInfo] = {}
    broken: set[str] = set()
    suffixes = {suffix.removeprefix(".") for suffix in image_suffixes()}
    for member in members:
        path = PurePosixPath(member.name)
        base, _, suffix = path.name.partition(".")
        suffix = suffix.lower()
        found = documents if suffix == _JSON else images
        if member.isdir() or not base or (suffix != _JSON and suffix not in suffixes):
            continue
        key = str(path.with_name(base))
        if path.is_absolute() or ".." in path.parts:
            report(f"{member.name!r:.200} leads out of the shard", _OUTSIDE)
            broken.add(key)
        elif not member.isreg() or member.issparse():
            report(f"{member.name!r:.200} is a link or a device, not a file", _OUTSIDE)
            broken.add(key)
        elif key in found:
            report(f"{member.name} and {found[key].name} are of one sample", _REPEATED)
            broken.add(key)
        else:
            found[key] = member
    for key in dict.fromkeys([*images, *documents]):
        if key in broken:
            continue
        if key not in documents:
            report(f"{images[key].name} has no {key}.{_JSON}", _INCOMPLETE)
        elif key not in images:
            report(f"{documents[key].name} has no image", _INCOMPLETE)
        else:
            yield _Sample(images[key], documents[key])


def _read_document(file: BinaryIO, member: tarfile.TarInfo) -> _SampleDocument:
    """Return the JSON of a sample.

    Raises:
        ValueError: If it is not valid.
    """
    try:
        document = msgspec.json.decode(_read(file, member), type=_SampleDocument)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if parse_id(document.image.get("id")) is None:
        raise ValueError(f"the 'id' of the image is {document.image.get('id')!r:.60}, not an integer or text")
    return document


def _read(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)
