"""Building COCO documents from datasets in other formats."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from deformdetr._files import check_folder, check_writable, write_text
from deformdetr.data._config import DEFAULT_DECODING, DecodeConfig
from deformdetr.data._containment import OUTSIDE, ContainedNames
from deformdetr.data._errors import DatasetError, Kind, Problems
from deformdetr.data._images import read_header

_UNREADABLE = Kind("image files that cannot be read")


class ForeignDataset(NamedTuple):
    """A dataset in another format as COCO documents. File names are relative to `root`.

    Examples:
        >>> from pathlib import Path
        >>> from deformdetr.data import ForeignDataset
        >>> document = {"images": [], "annotations": [], "categories": []}
        >>> ForeignDataset(Path("pets"), {"train": document}, notes=[]).root.name
        'pets'
    """

    root: Path
    documents: dict[str, dict[str, Any]]
    """Images, annotations and categories of each split, by its name in the dataset; "all" if it has no splits."""
    notes: list[str]
    """What was left out or decided."""


class DocumentBuilder:
    """Collect images and boxes of one dataset, and problems with them.

    Args:
        root: Folder that file names become relative to.
        decode: How image files become pixels, for the sizes of images.

    Attributes:
        root: The same.
        problems: Problems so far.
        notes: Counts of what was left out or decided.
    """

    def __init__(self, root: Path, decode: DecodeConfig = DEFAULT_DECODING) -> None:
        self.root = root
        self.problems = Problems()
        self.notes: Counter[str] = Counter()
        self._decode = decode
        self._names = ContainedNames(root)
        self._splits: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}

    def add_image(self, split: str, path: Path) -> dict[str, Any] | None:
        """Add an image to a split and return its entry, or report that it cannot be read."""
        if not self._decode.allow_outside and not self._names.has(path.relative_to(self.root)):
            self.problems.report(f"{path}: leads out of {self.root}", OUTSIDE)
            return None
        try:
            header = read_header(path, self._decode)
        except DatasetError as error:
            self.problems.report(str(error), _UNREADABLE)
            return None
        images, _ = self._splits.setdefault(split, ([], []))
        name = path.relative_to(self.root).as_posix()
        images.append({"id": len(images) + 1, "file_name": name, "width": header.width, "height": header.height})
        return images[-1]

    def add_box(self, split: str, image: dict[str, Any], category: int, box: list[float], **fields: Any) -> None:
        """Add a box (left, top, width, height in pixels) of an image, and other fields of its annotation."""
        _, annotations = self._splits[split]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category,
                "bbox": [round(side, 3) for side in box],
                "area": round(box[2] * box[3], 3),
                "iscrowd": 0,
                **fields,
            }
        )

    def finish(self, names: dict[int, str]) -> ForeignDataset:
        """Return the dataset with its categories."""
        categories = [{"id": number, "name": name} for number, name in sorted(names.items())]
        documents = {
            split: {"images": images, "annotations": annotations, "categories": categories}
            for split, (images, annotations) in self._splits.items()
        }
        return ForeignDataset(self.root, documents, [f"{count:,} {note}" for note, count in self.notes.items()])


def write_documents(dataset: ForeignDataset, folder: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
    """Write the documents of a dataset as `train.json`, `val.json` and so on, and return the files by these names.

    Evaluation images may be called "valid" or "validation" in the dataset.

    Raises:
        ValueError: If two splits have one name, such as "val" and "valid". Nothing is written then.
        FileExistsError: If a file exists and `overwrite` is False. Nothing is written then.
        OSError: If a file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deformdetr.data import ForeignDataset, write_documents
        >>> document = {"images": [], "annotations": [], "categories": []}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_documents(ForeignDataset(Path("pets"), {"valid": document}, []), folder)
        >>> files["val"].name
        'val.json'
    """
    folder = Path(folder)
    renamed = {"valid": "val", "validation": "val"}
    names = {split: renamed.get(split, split) for split in dataset.documents}
    for name, count in Counter(names.values()).items():
        if count > 1:
            shared = ", ".join(split for split, other in names.items() if other == name)
            raise ValueError(
                f"the splits {shared} of {dataset.root} would share the file {name}.json: leave all but one out"
            )
    files = {split: folder / f"{name}.json" for split, name in names.items()}
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files.values():
        check_writable(file, suffixes=(".json",), overwrite=overwrite)
    for split, file in files.items():
        write_text(file, json.dumps(dataset.documents[split], ensure_ascii=False))
    return {names[split]: file for split, file in files.items()}
