"""Reading datasets in the XML format of Pascal VOC."""

import math
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from deformdetr.data._config import DEFAULT_DECODING, DecodeConfig
from deformdetr.data._errors import DatasetError, Kind
from deformdetr.data._find_images import find_images
from deformdetr.data._foreign import DocumentBuilder, ForeignDataset

_INVALID = Kind("annotation files that are not in Pascal VOC's format")
_NO_IMAGE = Kind("annotation files without an image", "images in another folder, or renamed?")
_INVALID_OBJECT = Kind("objects without a valid name or box")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_SPLITS = ("train", "val", "valid", "validation", "test")


class _Object(NamedTuple):
    name: str
    corners: list[float]
    is_difficult: bool


class _Picture(NamedTuple):
    split: str
    path: Path
    objects: list[_Object]


def read_voc(
    folder: str | Path, *, first_pixel: int | None = None, decode: DecodeConfig = DEFAULT_DECODING
) -> ForeignDataset:
    """Read a folder of XML files in the format of Pascal VOC, as Roboflow, CVAT and LabelImg write them too.

    XML files and images may lie in one folder or in several. Splits are the lists in `ImageSets/Main`, or folders named
    train, valid, val or test. An image without an XML file is left out.

    Args:
        folder: The dataset.
        first_pixel: Coordinate of the first pixel. Pascal VOC counts from 1 and includes the last pixel. Some tools
            write distances from 0. `None` takes 0 if a coordinate is below 1 or not a whole number, and else 1.
        decode: How image files become pixels, for the sizes of images.

    Raises:
        DatasetError: If there are no XML files, or problems with them. The message has those of each kind.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from deformdetr.data import read_voc
        >>> box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(Path(folder, "a.png"))
        ...     text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        ...     _ = Path(folder, "a.xml").write_text(text)
        ...     dataset = read_voc(folder)
        >>> dataset.documents["all"]["annotations"][0]["bbox"]
        [0.0, 0.0, 20.0, 10.0]
    """
    root = Path(folder)
    files = find_images([root])
    xml_files = [file for file in files.others if file.suffix.lower() == ".xml"]
    if not xml_files:
        raise DatasetError(f"{root} has no XML files of Pascal VOC")
    builder = DocumentBuilder(root, decode)
    images = _ImageIndex(files.images)
    lists = _image_sets(root)
    pictures = [picture for file in xml_files for picture in _read_file(file, images, lists, builder)]
    builder.problems.refuse()
    names = sorted({each.name for picture in pictures for each in picture.objects})
    if first_pixel is None:
        edges = [edge for picture in pictures for each in picture.objects for edge in each.corners]
        first_pixel = 0 if any(edge < 1 or not edge.is_integer() for edge in edges) else 1
    for picture in pictures:
        image = builder.add_image(picture.split, picture.path)
        for each in picture.objects if image is not None else ():
            left, top, right, bottom = each.corners
            box = [left - first_pixel, top - first_pixel, right - left + first_pixel, bottom - top + first_pixel]
            fields = {"difficult": 1} if each.is_difficult else {}
            builder.add_box(picture.split, image or {}, names.index(each.name) + 1, box, **fields)
            builder.notes["objects marked as difficult, kept as objects"] += each.is_difficult
    builder.problems.refuse()
    builder.notes["images without an XML file, left out"] += len({*files.images} - {each.path for each in pictures})
    builder.notes = +builder.notes
    dataset = builder.finish(dict(enumerate(names, start=1)))
    return dataset._replace(notes=[*dataset.notes, f"coordinates are read as counted from {first_pixel}"])


class _ImageIndex:
    """Find the image that an XML file describes."""

    def __init__(self, images: list[Path]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        for path in images:
            for key in {path.name, path.stem}:
                self._by_name.setdefault(key, []).append(path)

    def find(self, file: Path, name: str) -> Path | None:
        """Return the image of the name or else of the file's stem, in the folder most like that of name or file."""
        named = Path(name.replace("\\", "/"))
        found = self._by_name.get(named.name, []) or self._by_name.get(file.stem, [])

        def likeness(path: Path) -> tuple[bool, int, int]:
            folder = path.parent
            return folder == file.parent, _equal_ends(folder, named.parent), _equal_ends(folder, file.parent)

        ranked = sorted(found, key=likeness, reverse=True)
        is_ambiguous = len(ranked) > 1 and likeness(ranked[0]) == likeness(ranked[1])
        return None if is_ambiguous or not ranked else ranked[0]


def _equal_ends(first: Path, second: Path) -> int:
    """Return how many folders two paths have in common at their ends."""
    pairs = zip(reversed(first.parts), reversed(second.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _read_file(
    file: Path, images: _ImageIndex, lists: dict[str, set[str]], builder: DocumentBuilder
) -> Iterable[_Picture]:
    try:
        annotation = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:
        builder.problems.report(f"{file}: {error}", _INVALID)
        return
    if annotation.tag != "annotation":
        builder.problems.report(f"{file}: its root is <{annotation.tag}>, not <annotation>", _INVALID)
        return
    name = (annotation.findtext("filename") or "").strip()
    path = images.find(file, name)
    if path is None:
        builder.problems.report(f"{file}: there is no image {name or file.stem!r}, or several", _NO_IMAGE)
        return
    objects = []
    for number, element in enumerate(annotation.iterfind("object"), start=1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            builder.problems.report(f"{file}: object number {number}: {error}", _INVALID_OBJECT)
    splits = [split for split, stems in lists.items() if file.stem in stems or path.stem in stems]
    parents = [part.lower() for part in path.relative_to(builder.root).parts[:-1]]
    for split in splits or [next((part for part in parents if part in _SPLITS), "all")]:
        yield _Picture(split, path, objects)


def _read_object(element: ElementTree.Element) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no <name>")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"{name!r} has no <bndbox>")
    corners = []
    for edge in _EDGES:
        text = (box.findtext(edge) or "").strip()
        try:
            corners.append(float(text))
        except ValueError:
            raise ValueError(f"<{edge}> of {name!r} is {text!r:.60}, not a number") from None
    if not all(map(math.isfinite, corners)):
        raise ValueError(f"<bndbox> of {name!r} is {corners}, which is not finite")
    return _Object(name, corners, (element.findtext("difficult") or "").strip() == "1")


def _image_sets(root: Path) -> dict[str, set[str]]:
    """Return the stems of each list of images. Lists of one category, such as cat_train.txt, are none of images."""
    files = {file.stem: file for file in sorted(root.rglob("ImageSets/Main/*.txt")) if "_" not in file.stem}
    if {"train", "val"} <= files.keys():
        files.pop("trainval", None)
    lines = {
        split: file.read_text(encoding="utf-8-sig", errors="replace").splitlines() for split, file in files.items()
    }
    return {split: {Path(line.split()[0]).name for line in found if line.strip()} for split, found in lines.items()}
