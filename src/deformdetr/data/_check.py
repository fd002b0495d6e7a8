"""Checking a dataset before training on it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from deformdetr.data._config import DEFAULT_DECODING, AnyDataConfig, DecodeConfig
from deformdetr.data._dataset import Datasets, DetectionDataset, build_datasets, read_dataset
from deformdetr.data._errors import DatasetError, Problems
from deformdetr.data._headers import UNUSABLE_FILE, read_headers
from deformdetr.data._warnings import NO_LIMITS, ObjectLimits, find_warnings

_SAMPLE = 256


class CheckReport(NamedTuple):
    """Summaries of both splits, warnings, and the number of images decoded. `str()` returns the whole report.

    Examples:
        >>> from deformdetr.data import CheckReport
        >>> print(CheckReport("80 images", "20 images", warnings=(), decoded=0))
        train: 80 images
        val: 20 images
        no warnings
        headers of all image files read
    """

    train: str
    val: str
    warnings: tuple[str, ...]
    decoded: int

    def __str__(self) -> str:
        decoded = f"{self.decoded:,} image files decoded" if self.decoded else "headers of all image files read"
        return "\n".join([f"train: {self.train}", f"val: {self.val}", *_listed(self.warnings), decoded])


def check(
    config: AnyDataConfig,
    *,
    decode: bool = False,
    masks: bool = False,
    limits: ObjectLimits = NO_LIMITS,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check both splits of a dataset, report every problem at once, and judge the dataset as a whole.

    The headers of all image files are read, and their sizes compared with the annotated ones.

    Args:
        config: The dataset.
        decode: Whether to decode every image file too.
        masks: Whether to read masks, which a model with a mask head needs.
        limits: How many objects per image the model and its evaluation can find, for a warning.
        progress: Called with the number of images decoded so far and the total.

    Raises:
        DatasetError: If the dataset has problems. The message has those of each kind with file, id and value.

    Examples:
        >>> from deformdetr.data import ShapesConfig, check
        >>> check(ShapesConfig(num_train=4, num_val=2), decode=True).decoded
        6
    """
    datasets = build_datasets(config, masks=masks)
    headers = read_headers(datasets)
    # Decoding finds the same problems of files, and more.
    problems = _decode(list(datasets), progress) if decode else headers.problems
    problems.refuse()
    warnings = find_warnings(datasets, limits=limits, headers=headers)
    decoded = sum(map(len, datasets)) if decode else 0
    return CheckReport(datasets.train.summary(), datasets.val.summary(), tuple(warnings), decoded)


class FileReport(NamedTuple):
    """Summary of an annotation file, and warnings about it and its images. `str()` returns the whole report.

    Examples:
        >>> from deformdetr.data import FileReport
        >>> print(FileReport("80 images", warnings=("3 images have the file of another image",)))
        80 images
        warning: 3 images have the file of another image
    """

    summary: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.summary, *_listed(self.warnings)])


def check_file(images: str | Path, annotations: str | Path, *, decode: DecodeConfig = DEFAULT_DECODING) -> FileReport:
    """Check one annotation file and the headers of its images, before it is split or has a counterpart.

    Args:
        images: Folder that the file names are relative to.
        annotations: The COCO JSON file.
        decode: How image files are read.

    Raises:
        DatasetError: If there are problems. The message has those of each kind with file, id and value.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import ShapesConfig, check_file, write_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = write_shapes(ShapesConfig(num_train=3, num_val=1), folder)
        ...     report = check_file(config.train_images, config.train_annotations)
        >>> report.warnings
        ()
    """
    dataset = read_dataset(images, annotations, decode)
    headers = read_headers(dataset)
    headers.problems.refuse()
    warnings = find_warnings(dataset, headers=headers)
    return FileReport(dataset.summary(), tuple(warnings))


def judge(datasets: Datasets, *, limits: ObjectLimits = NO_LIMITS) -> list[str]:
    """Return warnings about a dataset, in the time that the start of a training can take: from a sample of its files.

    Raises:
        DatasetError: If files of the sample cannot be used.

    Examples:
        >>> from deformdetr.data import ObjectLimits, ShapesConfig, build_datasets, judge
        >>> datasets = build_datasets(ShapesConfig(num_train=4, num_val=2))
        >>> judge(datasets, limits=ObjectLimits(num_queries=100))
        []
    """
    headers = read_headers(datasets, sample=_SAMPLE)
    headers.problems.refuse()
    return find_warnings(datasets, limits=limits, headers=headers)


def _listed(warnings: Sequence[str]) -> list[str]:
    return [f"warning: {each}" for each in warnings] or ["no warnings"]


def _decode(datasets: list[DetectionDataset], progress: Callable[[int, int], None] | None) -> Problems:
    def fault_of(item: tuple[DetectionDataset, int]) -> str | None:
        dataset, index = item
        try:
            dataset.untransformed(index)
        except DatasetError as error:
            return f"image {dataset.annotations.image_ids[index]}: {error}"
        return None

    items = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    problems = Problems()
    with ThreadPoolExecutor() as pool:
        for done, ((dataset, _), fault) in enumerate(zip(items, pool.map(fault_of, items), strict=True), start=1):
            if fault is not None:
                problems.report(fault, UNUSABLE_FILE, source=dataset.report.source)
            if progress is not None:
                progress(done, len(items))
    return problems
