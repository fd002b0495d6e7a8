"""Checking a dataset before training on it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from deformdetr.data._config import AnyDataConfig
from deformdetr.data._dataset import DetectionDataset, build_datasets
from deformdetr.data._errors import DatasetError, dataset_error


class CheckReport(NamedTuple):
    """Summaries of both splits and the number of images decoded. `str()` returns the whole report.

    Examples:
        >>> from deformdetr.data import CheckReport
        >>> print(CheckReport("80 images", "20 images", decoded=0))
        train: 80 images
        val: 20 images
        image files found, none decoded
    """

    train: str
    val: str
    decoded: int

    def __str__(self) -> str:
        decoded = f"{self.decoded:,} image files decoded" if self.decoded else "image files found, none decoded"
        return f"train: {self.train}\nval: {self.val}\n{decoded}"


def check(
    config: AnyDataConfig,
    *,
    decode: bool = False,
    masks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check both splits of a dataset and report every problem at once.

    Args:
        config: The dataset.
        decode: Whether to decode every image file and compare its size with the annotated one.
        masks: Whether to read masks, which a model with a mask head needs.
        progress: Called with the number of images decoded so far and the total.

    Raises:
        DatasetError: If the dataset has problems. The message has one line per problem, with file, id and value.

    Examples:
        >>> from deformdetr.data import ShapesConfig, check
        >>> check(ShapesConfig(num_train=4, num_val=2), decode=True).decoded
        6
    """
    datasets = build_datasets(config, masks=masks)
    decoded = _decode(list(datasets), progress) if decode else 0
    return CheckReport(datasets.train.summary(), datasets.val.summary(), decoded)


def _decode(datasets: list[DetectionDataset], progress: Callable[[int, int], None] | None) -> int:
    def problem_of(item: tuple[DetectionDataset, int]) -> str | None:
        dataset, index = item
        try:
            dataset.untransformed(index)
        except DatasetError as error:
            return f"image {dataset.annotations.image_ids[index]}: {error}"
        return None

    items = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    problems: list[str] = []
    with ThreadPoolExecutor() as pool:
        for done, problem in enumerate(pool.map(problem_of, items), start=1):
            if problem is not None:
                problems.append(problem)
            if progress is not None:
                progress(done, len(items))
    if problems:
        raise dataset_error(problems)
    return len(items)
