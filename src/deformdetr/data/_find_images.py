"""Finding image files in folders."""

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# Pillow names these formats and does not decode them.
_NEVER_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG"}


class FoundImages(NamedTuple):
    """Files that may be images, and other files of the same folders."""

    images: list[Path]
    others: list[Path]


def find_images(paths: str | Path | Iterable[str | Path]) -> FoundImages:
    """Return files as given, and the image files of folders and their subfolders, sorted and without repetitions.

    Image files have a suffix of a format that Pillow can open, such as .jfif, .webp or .jp2, in upper or lower case.
    Hidden files are no images, because archives from a Mac hold one beside each image. Links to folders are followed,
    and each folder is searched once. A single path is a list of one.

    Raises:
        FileNotFoundError: If a path does not exist.
        OSError: If a folder cannot be read.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deformdetr.data import find_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.JPG", "a.png", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     found = find_images([folder])
        >>> [path.name for path in found.images], [path.name for path in found.others]
        (['a.png', 'b.JPG'], ['notes.txt'])
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    absent = [str(path) for path in given if not path.exists()]
    if absent:
        raise FileNotFoundError(f"no such file or folder: {', '.join(absent)}")
    found = FoundImages([], [])
    for path in given:
        if not path.is_dir():
            found.images.append(path)
            continue
        for file in sorted(_files_below(path)):
            parts = file.relative_to(path).parts
            is_image = file.suffix.lower() in image_suffixes() and not any(part.startswith(".") for part in parts)
            (found.images if is_image else found.others).append(file)
    return FoundImages(*(list(dict.fromkeys(each)) for each in found))


def _files_below(folder: Path) -> Iterator[Path]:
    searched = set()
    # Links to folders come last, so that files have the names of the folders that they lie in.
    starts = [folder]
    for start in starts:
        for place, folders, names in os.walk(start, onerror=_fail):
            here = Path(place)
            real = here.resolve()
            if real in searched:
                folders.clear()
                continue
            searched.add(real)
            # In the order of names, so that the same one of two links to a folder is followed on every machine.
            folders.sort()
            shown = [here / name for name in folders if not name.startswith(".")]
            starts += [each for each in shown if each.is_symlink()]
            yield from (file for file in map(here.joinpath, names) if file.is_file())


def _fail(error: OSError) -> None:
    # Hidden folders have no images.
    if not Path(error.filename).name.startswith("."):
        raise error


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that Pillow can decode, in lower case and with their dot.

    Examples:
        >>> from deformdetr.data import image_suffixes
        >>> ".jpg" in image_suffixes(), ".txt" in image_suffixes()
        (True, False)
    """
    Image.init()
    formats = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in formats if name in Image.OPEN and name not in _NEVER_DECODED)
