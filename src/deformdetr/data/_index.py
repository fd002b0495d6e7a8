"""An index of what was read from a large annotation file: arrays in a file beside it, which all processes share."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from deformdetr._coco_types import LabelMap
from deformdetr._files import FileError, cache_folder, reading_tensors, replacing
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._containment import ContainedNames
from deformdetr.data._image_entries import is_file
from deformdetr.data._segmentations import Segmentations

# Reading a smaller annotation file takes about a second.
_MIN_BYTES = 2**24
_ARRAYS = ("sizes", "image_index", "labels", "boxes", "published", "areas", "is_crowd")


def is_large(file: Path) -> bool:
    """Return whether a file exists and takes so long to read that an index is kept."""
    return file.is_file() and file.stat().st_size >= _MIN_BYTES


class AnnotationIndex:
    """What was read from one content of an annotation file, with the same options and by the same code.

    It lies beside the annotation file, or in PyTorch's cache where that folder is read-only. Its key is a hash of the
    whole annotation file, of the options, and of the source code of this package, so that nothing outdated is used.

    Args:
        file: The annotation file.
        label_map: The label map that is asked for, or `None` for that of the file.
        options: Other arguments that change what is read.
    """

    def __init__(self, file: Path, label_map: LabelMap | None, options: Mapping[str, Any]) -> None:
        self._file = file
        self._label_map = label_map
        self._options = options
        self._content = hash_of(file)

    def load(self, folder: Path | None, *, allow_outside: bool) -> Annotations | None:
        """Return the annotations, or `None` if there is no valid index, or image files are not where they were.

        Nor if names of images lead out of the folder, unless `allow_outside` is set. Without a folder, files are not
        looked for.
        """
        names = None if folder is None or allow_outside else ContainedNames(folder)
        for label_map in dict.fromkeys((None, self._label_map)):
            for path in self._paths(label_map):
                found = self._load(path, label_map, folder)
                if found is None or self._label_map not in (None, found.label_map) or not found.is_consistent():
                    continue
                if names is None or all(names.has(name) for name in found.file_names):
                    return found
        return None

    def save(self, annotations: Annotations, *, absent: Sequence[str]) -> None:
        """Write the index, unless the annotation file has changed. Where nothing can be written, there is none.

        Args:
            annotations: What was read.
            absent: File names that must not exist, as in `ImageTable`.
        """
        if hash_of(self._file) != self._content:
            return
        details = {
            "key": self._key(self._label_map),
            "file_names": annotations.file_names,
            "image_ids": annotations.image_ids,
            "absent": absent,
            "label_map": annotations.label_map.model_dump(mode="json"),
            "report": vars(annotations.report),
        }
        arrays = {name: getattr(annotations, name) for name in _ARRAYS}
        if annotations.segmentations is not None:
            arrays |= annotations.segmentations._asdict()
        for path in self._paths(self._label_map):
            # Without an index, the annotation file is read again.
            with suppress(OSError):
                write_arrays(path, details, arrays)
                return

    def _load(self, path: Path, label_map: LabelMap | None, folder: Path | None) -> Annotations | None:
        names = (*_ARRAYS, *Segmentations._fields) if self._options["masks"] else _ARRAYS
        try:
            details, arrays = read_arrays(path, names)
        except (FileError, FileNotFoundError):
            return None
        if details["key"] != self._key(label_map):
            return None
        if folder is not None:
            moved = any(not is_file(folder, name) for name in details["file_names"])
            if moved or any(is_file(folder, name) for name in details["absent"]):
                return None
        segments = [arrays.pop(name) for name in Segmentations._fields if name in arrays]
        notes = tuple(details["report"]["notes"])
        return Annotations(
            file_names=tuple(details["file_names"]),
            image_ids=tuple(details["image_ids"]),
            label_map=LabelMap.model_validate(details["label_map"]),
            report=DatasetReport(**{**details["report"], "notes": notes, "source": str(self._file)}),
            segmentations=Segmentations(*segments) if segments else None,
            **arrays,
        )

    def _key(self, label_map: LabelMap | None) -> str:
        return short_hash(self._content, _hash_of_code(), self._asked(label_map))

    def _paths(self, label_map: LabelMap | None) -> tuple[Path, Path]:
        # The names do not depend on the content, so that outdated files are replaced.
        asked = self._asked(label_map)
        beside = self._file.with_name(f".{self._file.name}.{short_hash(asked)}.safetensors")
        name = short_hash(str(self._file.resolve()), asked)
        return beside, cache_folder().with_name("annotations") / f"{name}.safetensors"

    def _asked(self, label_map: LabelMap | None) -> str:
        labels = None if label_map is None else label_map.model_dump(mode="json")
        return json.dumps({"label_map": labels, **self._options}, sort_keys=True)


def write_arrays(path: Path, details: Mapping[str, Any], arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write details, which must be JSON, and arrays to one file with a checksum, atomically."""
    from safetensors.numpy import save_file

    content = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content["details"] = np.frombuffer(json.dumps(details).encode(), np.uint8)
    content["checksum"] = np.array([_checksum(content)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        mode = unfinished.stat().st_mode
        save_file(content, unfinished)
        # Other users of the dataset may read it, unlike what safetensors writes.
        unfinished.chmod(mode)


def read_arrays(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    """Return what `write_arrays` has written. Arrays are mapped into memory, which processes share.

    Raises:
        FileNotFoundError: If there is no file.
        FileError: If it is damaged.
    """
    from safetensors import safe_open

    with reading_tensors(path), safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name).numpy() for name in (*names, "details", "checksum")}
    if content.pop("checksum").tolist() != [_checksum(content)]:
        raise FileError(f"{path} is damaged")
    return json.loads(content.pop("details").tobytes()), content


def _checksum(content: Mapping[str, Shaped[np.ndarray, "..."]]) -> int:
    checksum = 0
    for name in sorted(content):
        checksum = zlib.crc32(content[name].reshape(-1).view(np.uint8).data, checksum)
    return checksum


def hash_of(file: Path) -> str:
    """Return a hash of the content of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


@cache
def _hash_of_code() -> str:
    return short_hash(*(file.read_text() for file in sorted(Path(__file__).parent.glob("*.py"))))


def short_hash(*texts: str) -> str:
    """Return a hash of texts that fits the name of a file."""
    return hashlib.blake2b("\0".join(texts).encode(errors="surrogateescape"), digest_size=16).hexdigest()
