"""Writing a dataset in COCO format as shards."""

import io
import re
import secrets
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from deformdetr.data._coco import read_coco
from deformdetr.data._documents import Document, NeedsWholeError, open_document, whole_document
from deformdetr.data._entries import listed_categories
from deformdetr.data._errors import DatasetError
from deformdetr.data._find_images import image_suffixes
from deformdetr.data._ids import parse_id
from deformdetr.data._shard_index import index_shards

_SHARD_BYTES = 2**28


def write_shards(
    images: str | Path,
    annotations: str | Path,
    folder: str | Path,
    *,
    shard_bytes: int = _SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset in COCO format as shards with an index, for `ShardsConfig`. Image files are copied as they are.

    The folder is complete or absent: it is written under another name. Equal datasets give equal shards. Memory
    holds the content of the annotation file.

    Args:
        images: Folder that the file names are relative to.
        annotations: The COCO JSON file.
        folder: Folder to write to, which must be absent or empty.
        shard_bytes: Size at which the next shard begins.
        progress: Called with the number of images written and the total.

    Raises:
        DatasetError: If the dataset has problems.
        FileExistsError: If `folder` is a file, or holds any.
        ValueError: If `shard_bytes` is not positive.
        OSError: If a file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deformdetr.data import ShapesConfig, ShardsConfig, build_dataset, write_shapes, write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_shapes(ShapesConfig(num_train=3, num_val=1), folder)
        ...     write_shards(files.train_images, files.train_annotations, Path(folder, "shards"))
        ...     dataset = build_dataset(ShardsConfig(train=f"{folder}/shards", val=f"{folder}/shards"), "train")
        ...     len(dataset), dataset[0][0].shape[0]
        (3, 3)
    """
    if shard_bytes <= 0:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    samples = _Samples(Path(images), Path(annotations))
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{secrets.token_hex(8)}.unfinished")
    unfinished.mkdir()
    try:
        _write(samples, unfinished, shard_bytes, progress)
        index_shards(unfinished, categories=samples.categories)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Samples:
    """The samples of a dataset: each image with its entry and annotations, as JSON."""

    def __init__(self, images: Path, annotations: Path) -> None:
        found = read_coco(images, annotations)
        self._names = {str(number): name for number, name in zip(found.image_ids, found.file_names, strict=True)}
        self._folder = images
        try:
            self._read(open_document(annotations))
        except NeedsWholeError:
            self._read(whole_document(annotations))
        except (OverflowError, UnicodeError) as error:
            raise DatasetError(f"{annotations}: has a value that shards cannot hold: {error}") from error

    def _read(self, document: Document) -> None:
        self.categories = list(document.categories)
        self._entries = {str(parse_id(entry["id"])): _encode(entry) for entry in document.images}
        self._rows: defaultdict[str, list[msgspec.Raw]] = defaultdict(list)
        self._used: defaultdict[str, set[int]] = defaultdict(set)
        ids = listed_categories(self.categories)
        self._category = {ids[each["id"]]: _encode(each) for each in reversed(self.categories)}
        for row in document.annotations:
            image = str(parse_id(row["image_id"]))
            self._rows[image].append(_encode(row))
            self._used[image].add(ids[row["category_id"]])

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[tuple[str, Path, bytes]]:
        """Yield a key that no other sample has, the image file, and the JSON."""
        keys: set[str] = set()
        for number, (image, name) in enumerate(self._names.items()):
            categories = [self._category[each] for each in sorted(self._used[image])]
            document = {"image": self._entries[image], "annotations": self._rows[image], "categories": categories}
            key = re.sub(r"[^\w-]", "_", Path(name).stem)[:80]
            key = key if key and key not in keys else f"{key}_{number}"
            keys.add(key)
            yield key, self._folder / name, msgspec.json.encode(document)


def _encode(entry: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(entry))


def _write(samples: _Samples, folder: Path, shard_bytes: int, progress: Callable[[int, int], None] | None) -> None:
    numbered = enumerate(samples, start=1)
    for number, first in enumerate(numbered):
        with tarfile.open(folder / f"{number:06d}.tar", "w:") as shard:
            for done, (key, file, document) in chain([first], numbered):
                suffix = file.suffix.lower()
                # Readers of images go by the content, but those of shards by the name.
                _add(shard, f"{key}{suffix if suffix in image_suffixes() else '.jpg'}", file.read_bytes())
                _add(shard, f"{key}.json", document)
                if progress is not None:
                    progress(done, len(samples))
                if shard.offset >= shard_bytes:
                    break


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))
