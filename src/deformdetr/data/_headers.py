"""Headers of all image files of a dataset, or of a sample: sizes, orientations and pixel formats."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from deformdetr.data._dataset import Datasets, DetectionDataset
from deformdetr.data._errors import DatasetError, Kind, Problems
from deformdetr.data._images import ImageFiles, ImageHeader

UNUSABLE_FILE = Kind("image files that cannot be used", "damaged, or resized or turned after they were annotated?")
_GRAY_MODES = ("1", "L", "LA", "La")


class Headers(NamedTuple):
    """Headers of the image files of both splits, and problems with files."""

    of_split: dict[str, list[tuple[int, ImageHeader]]]
    """Index and header of each image that was looked at, by the name of its split."""
    problems: Problems

    def warnings(self, split: str, dataset: DetectionDataset) -> Iterator[str]:
        """Return what the files of one split may surprise with."""
        found = self.of_split.get(split, [])
        if not found or dataset.files is None:
            return
        of = f"of {len(found):,} images" + (" looked at" if len(found) < len(dataset) else "")
        yield from _of_orientations(found, dataset.files, of)
        kinds = [_kind(header.mode) for _, header in found]
        counts = Counter(kinds).most_common()
        if len(counts) > 1:
            rare = [(kind, dataset.files.path(found[kinds.index(kind)][0]).name) for kind, _ in counts[1:]]
            listed = ", ".join(f"{count:,} {kind}" for kind, count in counts)
            first = ", ".join(f"{name} is {kind}" for kind, name in rare)
            yield f"images differ in their pixels: {listed} ({first}); all become RGB"
        deep = kinds.count(_DEEP)
        if deep:
            bits = dataset.files.decode.gray_bits
            rule = f"all as {bits} bits" if bits else "each by the bits that it uses, which data.decode.gray_bits fixes"
            yield f"{deep:,} {of} are 16-bit grayscale and scaled to 8 bits, {rule}"


_DEEP = "16-bit gray"


def named_splits(datasets: Datasets | DetectionDataset) -> dict[str, DetectionDataset]:
    """Return the datasets by the names of their splits; a single one has none."""
    return {"": datasets} if isinstance(datasets, DetectionDataset) else datasets._asdict()


def read_headers(datasets: Datasets | DetectionDataset, *, sample: int | None = None) -> Headers:
    """Read the headers of image files, of at most `sample` evenly spaced ones per split. `None` reads all.

    A single dataset is a split without a name.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import ShapesConfig, build_datasets, read_headers, write_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     datasets = build_datasets(write_shapes(ShapesConfig(num_train=3, num_val=2), folder))
        ...     headers = read_headers(datasets)
        >>> len(headers.of_split["train"]), headers.problems
        (3, [])
    """
    headers = Headers({}, Problems())
    with ThreadPoolExecutor() as pool:
        for split, dataset in named_splits(datasets).items():
            files = dataset.files
            if files is None:
                continue
            count = len(files) if sample is None else min(sample, len(files))
            chosen = np.linspace(0, len(files) - 1, count).astype(int).tolist()
            found = headers.of_split.setdefault(split, [])
            read = pool.map(partial(_header, files), chosen)
            for index, header in zip(chosen, read, strict=True):
                if isinstance(header, str):
                    text = f"image {dataset.annotations.image_ids[index]}: {header}"
                    headers.problems.report(text, UNUSABLE_FILE, source=dataset.report.source)
                else:
                    found.append((index, header))
    return headers


def _header(files: ImageFiles, index: int) -> ImageHeader | str:
    try:
        return files.header(index)
    except DatasetError as error:
        return str(error)


def _of_orientations(found: list[tuple[int, ImageHeader]], files: ImageFiles, of: str) -> Iterator[str]:
    turned = [(index, header) for index, header in found if header.orientation != 1]
    if not turned:
        return
    upright = files.decode.orientation == "upright"
    # The annotated size tells only whether quarter turns of images that are not square were applied.
    confirmed = sum(header.orientation >= 5 and header.height != header.width for _, header in turned)
    how = "are turned upright" if upright else "are used as stored"
    yield (
        f"{len(turned):,} {of} have an EXIF orientation, the first being {files.path(turned[0][0]).name}, and {how}; "
        f"the annotated size agrees for {confirmed:,}, and cannot tell for {len(turned) - confirmed:,}. If boxes are "
        f"{'not turned' if upright else 'for upright images'}, set data.decode.orientation to "
        f"{'stored' if upright else 'upright'}"
    )


def _kind(mode: str) -> str:
    if mode.startswith("I"):
        return _DEEP
    if mode in _GRAY_MODES:
        return "gray"
    return "color with transparency" if mode in ("RGBA", "RGBa", "PA") else "color"
