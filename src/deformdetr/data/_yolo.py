"""Reading datasets in the text format of YOLO."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deformdetr._files import FileError, read_mapping
from deformdetr.data._config import DEFAULT_DECODING, DecodeConfig
from deformdetr.data._errors import DatasetError, Kind
from deformdetr.data._find_images import find_images
from deformdetr.data._foreign import DocumentBuilder, ForeignDataset

_INVALID_LINE = Kind("lines that are neither boxes nor polygons")
_UNKNOWN_CLASS = Kind("lines of a class without a name", "a list of names of another dataset?")
_NO_IMAGE = Kind("images of a list that do not exist")
_SPLITS = ("train", "val", "valid", "test")


def read_yolo(folder: str | Path, *, decode: DecodeConfig = DEFAULT_DECODING) -> ForeignDataset:
    """Read a dataset of YOLO: one text file per image, with a class and a box or a polygon in each line.

    The layouts of Ultralytics and Roboflow (`data.yaml`), of CVAT and Darknet (`obj.data`, `obj.names`) and of Label
    Studio (`classes.txt`) are read. A text file lies beside its image, or in the folder `labels` where the image is in
    `images`. An image without one has no objects. Keypoints and confidences are left out.

    Args:
        folder: The dataset.
        decode: How image files become pixels, for the sizes of images.

    Raises:
        DatasetError: If names of classes or images are not found, or there are problems with files. The message has
            those of each kind.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from deformdetr.data import read_yolo
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(Path(folder, "a.png"))
        ...     _ = Path(folder, "a.txt").write_text("0 0.5 0.5 0.5 1.0")
        ...     _ = Path(folder, "classes.txt").write_text("cat")
        ...     dataset = read_yolo(folder)
        >>> dataset.documents["all"]["annotations"][0]["bbox"]
        [10.0, 0.0, 20.0, 30.0]
    """
    root = Path(folder)
    settings = _settings(root)
    names = _names(root, settings)
    builder = DocumentBuilder(root, decode)
    keypoints = _keypoint_values(root, settings.get("kpt_shape"))
    labeled = 0
    for split, path in _images(root, settings, builder):
        labels = _label_file(root, path)
        labeled += labels.is_file()
        builder.notes["images without a text file, which have no objects"] += not labels.is_file()
        image = builder.add_image(split, path)
        if image is not None and labels.is_file():
            _read_labels(split, image, labels, names, keypoints, builder)
    builder.problems.refuse()
    if not labeled:
        raise DatasetError(f"{root} has no text file for any image: are they in a folder `labels` beside `images`?")
    builder.notes = +builder.notes
    return builder.finish({number + 1: name for number, name in names.items()})


def _settings(root: Path) -> dict[str, Any]:
    """Return the settings in `data.yaml` or the like, or those of `obj.data` under the same names."""
    unreadable = []
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            # Numbers are keys in `names: {0: cat}`.
            settings = read_mapping(file, number_keys=True)
        except FileError as error:
            unreadable.append(str(error))
            continue
        if "names" in settings:
            return settings
    if unreadable:
        raise DatasetError("; ".join(unreadable))
    darknet = root / "obj.data"
    if not darknet.is_file():
        return {}
    lines = (line.partition("=") for line in _lines(darknet))
    settings = {key.strip(): value.strip() for key, _, value in lines if value.strip()}
    names = _below(root, settings.pop("names", "obj.names"))
    return {**settings, "names": [] if names is None else _lines(names)}


def _names(root: Path, settings: dict[str, Any]) -> dict[int, str]:
    """Return the name of each class number."""
    names = settings.get("names")
    if names is None:
        lists = [root / "classes.txt", root / "obj.names", root / "labels" / "classes.txt"]
        file = next((file for file in lists if file.is_file()), None)
        if file is None:
            raise DatasetError(f"{root} has neither a data.yaml with `names` nor obj.data nor classes.txt")
        names = _lines(file)
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(re.fullmatch(r"\d+", str(number)) for number in names):
        raise DatasetError(f"{root}: `names` is {names!r:.80}, neither a list nor a mapping of class numbers to names")
    return {int(number): str(name) for number, name in names.items()}


def _keypoint_values(root: Path, shape: Any) -> int:
    """Return how many values of keypoints follow a box."""
    if shape is None:
        return 0
    if not isinstance(shape, list) or not shape or not all(type(side) is int and side > 0 for side in shape):
        raise DatasetError(f"{root}: `kpt_shape` is {shape!r:.80}, not [number of keypoints, 2 or 3]")
    return math.prod(shape)


def _images(root: Path, settings: dict[str, Any], builder: DocumentBuilder) -> Iterator[tuple[str, Path]]:
    """Yield split and path of each image."""
    base = _below(root, str(settings.get("path") or ".")) or root
    given = {split: settings[split] for split in _SPLITS if settings.get(split)}
    if not given:
        for path in find_images([root]).images:
            yield "all", path
    for split, places in given.items():
        for place in places if isinstance(places, list) else [places]:
            found = _below(base, str(place)) or _below(root, str(place))
            if found is None and len(given) > 1:
                builder.notes[f"folders or lists of images that do not exist ({split}: {place})"] += 1
            elif found is None:
                raise DatasetError(f"{root}: there is no folder or list of images {place}")
            elif found.is_dir():
                yield from ((split, path) for path in find_images([found]).images)
            else:
                yield from ((split, path) for path in _listed(root, found, builder))


def _listed(root: Path, file: Path, builder: DocumentBuilder) -> Iterator[Path]:
    for line in _lines(file):
        path = _below(file.parent, line) or _below(root, line)
        if path is None:
            builder.problems.report(f"{file}: there is no image {line}", _NO_IMAGE)
        else:
            yield path


def _below(folder: Path, name: str) -> Path | None:
    """Return an existing path below a folder. Roboflow writes `../train/images`, and CVAT `data/train.txt`."""
    parts = Path(name.replace("\\", "/")).parts
    # Names of data sets that come from elsewhere must not reach other files of this machine.
    parts = tuple(part for part in parts if part not in ("..", ".", "/"))
    candidates = [folder.joinpath(*parts), folder.joinpath(*parts[1:])] if len(parts) > 1 else [folder.joinpath(*parts)]
    return next((path for path in candidates if path.exists()), None)


def _label_file(root: Path, image: Path) -> Path:
    parts = list(image.relative_to(root).parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
        return root.joinpath(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _read_labels(
    split: str, image: dict[str, Any], file: Path, names: dict[int, str], keypoints: int, builder: DocumentBuilder
) -> None:
    for number, line in enumerate(_lines(file), start=1):
        words = line.split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = [math.nan]
        if len(values) < 5 or not all(map(math.isfinite, values)):
            builder.problems.report(f"{file}: line {number} is {line!r:.80}", _INVALID_LINE)
        elif int(values[0]) != values[0] or int(values[0]) not in names:
            builder.problems.report(
                f"{file}: line {number}: class {words[0]} is none of {len(names)} names", _UNKNOWN_CLASS
            )
        else:
            numbers = values[1:5] if keypoints and len(values) == 5 + keypoints else values[1:]
            box, fields = _shape(numbers, image["width"], image["height"])
            builder.add_box(split, image, int(values[0]) + 1, box, **fields)


def _shape(values: list[float], width: int, height: int) -> tuple[list[float], dict[str, Any]]:
    """Return the box (left, top, width, height in pixels), and the polygon if the values are one."""
    if len(values) < 6:
        x, y, w, h = values[:4]
        return [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height], {}
    # An odd number of values ends with a confidence.
    xs = [x * width for x in values[: len(values) // 2 * 2 : 2]]
    ys = [y * height for y in values[1 : len(values) // 2 * 2 : 2]]
    polygon = [round(side, 3) for point in zip(xs, ys, strict=True) for side in point]
    area = abs(sum(x * (ys[i - 1] - ys[(i + 1) % len(ys)]) for i, x in enumerate(xs))) / 2
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return box, {"segmentation": [polygon], "area": round(area, 3)}


def _lines(file: Path) -> list[str]:
    """Return the lines of a file that are not blank. Bytes that are not UTF-8 become characters of no meaning."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
