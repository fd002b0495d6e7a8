"""Detection with a trained model in images of any kind."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from deformdetr.data import DecodeConfig, LabelMap, image_tensor, load_image, prepare_for_evaluation
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._inference import MASK_THRESHOLD, detect, panoptic_postprocess
from deformdetr.engine._result import DetectionResult
from deformdetr.engine._run_directory import evaluated_threshold, load_run
from deformdetr.models import IMAGENET_MEAN, IMAGENET_STD, PanopticPostProcess, prepare_image
from deformdetr.structures import Detections, ImageBatch, PanopticSegmentation

ImageSource = str | Path | Image.Image | np.ndarray | Tensor
"""An image file, a PIL image, an array (height, width[, 3]) of uint8, or a tensor (3, height, width)."""

_T = TypeVar("_T")
# The preparation of the original implementation for models without settings of their own.
_PREPARE = partial(prepare_image, short_side=800, max_size=1333, mean=IMAGENET_MEAN, std=IMAGENET_STD)

_DECODE = DecodeConfig()


class Predictor:
    """Detect objects in images with a trained model. `deformdetr.load` returns one.

    Examples:
        >>> import torch
        >>> from deformdetr import preset
        >>> from deformdetr.data import LabelMap
        >>> from deformdetr.engine import Predictor
        >>> config = preset("demo")
        >>> label_map = LabelMap(names=("circle", "rectangle", "triangle"), category_ids=(1, 2, 3))
        >>> predictor = Predictor(config.build(), config.build_postprocess(), label_map, prepare=lambda x: x / 255)
        >>> result = predictor(torch.zeros(3, 64, 96, dtype=torch.uint8), threshold=0.0)
        >>> result.boxes.shape
        torch.Size([90, 4])

    Args:
        model: Returns predictions from images and their padding mask.
        postprocess: Function from predictions and image sizes to detections.
        label_map: Name and category of each label.
        prepare: Function from an 8-bit image to the input of the model. The default is the preparation of the original
            implementation for COCO.
        decode: How image files and PIL images become pixels.
        precision: As in `TrainConfig`.
        best_threshold: The threshold of scores with the highest F1 in the evaluation of the model, as a suggestion.
        panoptic: Post-processing for panoptic segmentations of the images, which have a threshold of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        postprocess: Callable[..., list[Detections]],
        label_map: LabelMap,
        *,
        prepare: Callable[[UInt8[Tensor, "3 _ _"]], Float[Tensor, "3 _ _"]] = _PREPARE,
        decode: DecodeConfig = _DECODE,
        precision: str = "float32",
        best_threshold: float | None = None,
        panoptic: PanopticPostProcess | None = None,
    ) -> None:
        self.model = model.eval()
        self.postprocess = postprocess
        self.label_map = label_map
        self.prepare = prepare
        self.decode = decode
        self.precision = precision
        self.best_threshold = best_threshold
        self.panoptic = panoptic

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self.label_map.names

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "Predictor":
        """Move the model to a device."""
        self.model.to(device)
        return self

    @overload
    def __call__(
        self, images: ImageSource, *, threshold: float = ..., batch_size: int | None = ...
    ) -> DetectionResult: ...

    @overload
    def __call__(
        self,
        images: list[ImageSource] | list[str] | list[Path] | list[Image.Image] | list[np.ndarray] | list[Tensor],
        *,
        threshold: float = ...,
        batch_size: int | None = ...,
    ) -> list[DetectionResult]: ...

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        threshold: float = 0.5,
        batch_size: int | None = None,
    ) -> DetectionResult | list[DetectionResult]:
        """Return the detections in one image, or in each image of a list.

        Args:
            images: One image or a list of images. Arrays and PIL images may be grayscale; colors are in the order red,
                green, blue (OpenCV reads blue, green, red).
            threshold: Lowest score of a detection.
            batch_size: Largest number of images per forward pass, by default 1 on a CPU and 8 on other devices. Only
                images of the same size after resizing share a forward pass, so that the detections in an image do not
                depend on the others, apart from rounding.

        Raises:
            DatasetError: If a file is missing or cannot be read as an image.
            TypeError: If an image is of another type.
            ValueError: If an image has another shape or range, `threshold` is not in [0, 1], or `batch_size` is not
                positive.
        """
        if isinstance(images, Iterable) and not isinstance(images, ImageSource | bytes):
            return list(self.stream(images, threshold=threshold, batch_size=batch_size))
        (result,) = self.stream([images], threshold=threshold, batch_size=batch_size)
        return result

    def stream(
        self, images: str | Path | Iterable[ImageSource], *, threshold: float = 0.5, batch_size: int | None = None
    ) -> Iterator[DetectionResult]:
        """Yield the detections in each image of an iterable, such as `video_frames`, one batch in memory at a time.

        Arguments and errors are those of a call. A single path is an iterable of one.
        """
        images = [images] if isinstance(images, str | Path) else images
        check_threshold(threshold)
        for batch in batched(images, checked_batch_size(batch_size, self.device)):
            yield from self._detect(batch, threshold)

    def _detect(self, sources: Sequence[ImageSource], threshold: float) -> list[DetectionResult]:
        images = [read_image(source, self.decode) for source in sources]
        prepared = [self.prepare(image) for image in images]
        by_size: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(prepared):
            by_size.setdefault(image.shape, []).append(index)
        results: dict[int, DetectionResult] = {}
        for indices in by_size.values():
            detections, segmentations = detect(
                self.model,
                self.postprocess,
                ImageBatch.from_images([prepared[index] for index in indices]),
                [(images[index].shape[1], images[index].shape[2]) for index in indices],
                num_labels=len(self.names),
                precision=self.precision,
                panoptic=self.panoptic,
            )
            for number, index in enumerate(indices):
                segmentation = None if segmentations is None else segmentations[number]
                found = self._result(sources[index], images[index], detections[number], segmentation)
                # At once, so that masks below the threshold are not kept.
                results[index] = found.above(threshold)
        return [results[index] for index in range(len(sources))]

    def _result(
        self, source: ImageSource, image: Tensor, found: Detections, segmentation: PanopticSegmentation | None
    ) -> DetectionResult:
        # A softmax model returns one detection per query, in their order.
        scores, order = found["scores"].sort(descending=True, stable=True)
        height, width = image.shape[1:]
        return DetectionResult(
            image=image,
            boxes=clip_boxes_to_image(found["boxes"][order], (height, width)),
            scores=scores,
            labels=found["labels"][order],
            masks=found["masks"][order, 0] if "masks" in found else None,
            class_names=self.names,
            best_score=float(scores[0]) if len(scores) else None,
            source=Path(source) if isinstance(source, str | Path) else None,
            segmentation=segmentation,
        )


def load(source: str | Path, *, device: torch.device | str | None = None) -> Predictor:
    """Load a trained model for detection in images.

    Args:
        source: A run directory, whose best checkpoint is used, or one of its checkpoints, also by URL; or a folder that
            `deformdetr.integrations.hub.from_pretrained` reads. Either may be a repository on the Hugging Face Hub,
            `user/name`. A path that exists is a path, and so is `user/name` beside a folder `user`.
        device: Device of the model, by default a GPU if there is one.

    Raises:
        RunError: If there is no such run, or its checkpoint cannot be read.
        OSError: If a file cannot be downloaded.
        ValueError: If the config in a folder is not one of this library.
        CheckpointError: If the weights in a folder do not fit its config.

    Examples:
        >>> import deformdetr
        >>> detector = deformdetr.load("runs/mine")  # doctest: +SKIP
        >>> result = detector("photo.jpg", threshold=0.5)  # doctest: +SKIP
        >>> for name, score, box in zip(result.names, result.scores, result.boxes):  # doctest: +SKIP
        ...     print(name, float(score), box.tolist())
        >>> result.draw().save("found.png")  # doctest: +SKIP
    """
    path, checkpoint = load_run(source)
    predictor = predictor_of(checkpoint, best_threshold=evaluated_threshold(path, checkpoint))
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return predictor.to(default if device is None else device)


def predictor_of(
    checkpoint: Checkpoint, model: nn.Module | None = None, *, best_threshold: float | None = None
) -> Predictor:
    """Return a predictor with the settings of a checkpoint, and by default its model."""
    experiment = checkpoint.experiment
    return Predictor(
        checkpoint.build() if model is None else model,
        experiment.model.build_postprocess(mask_threshold=MASK_THRESHOLD),
        checkpoint.label_map,
        prepare=partial(prepare_for_evaluation, config=experiment.data),
        decode=experiment.data.decode,
        precision=experiment.train.precision,
        best_threshold=best_threshold,
        panoptic=panoptic_postprocess(experiment, checkpoint.label_map),
    )


def check_threshold(threshold: float) -> None:
    """Check a lowest score.

    Raises:
        ValueError: If it is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")


def checked_batch_size(batch_size: int | None, device: torch.device) -> int:
    """Return the images per forward pass. By default 1 on a CPU, which does not gain from batches, and 8 elsewhere.

    Raises:
        ValueError: If it is not positive.
    """
    if batch_size is None:
        return 1 if device.type == "cpu" else 8
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    return batch_size


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_image(source: ImageSource, decode: DecodeConfig = _DECODE) -> UInt8[Tensor, "3 height width"]:
    """Return an image of any kind as 8-bit RGB. Floating-point tensors in [0, 1] are scaled and rounded.

    Raises:
        DatasetError: If a file cannot be read.
        TypeError: If the source, or the dtype of an array, is of another kind.
        ValueError: If an array or a tensor has another shape or range.
    """
    if isinstance(source, str | Path):
        return load_image(source, decode)
    if isinstance(source, Image.Image):
        return image_tensor(source, decode)
    if isinstance(source, np.ndarray):
        return image_tensor(_from_array(source))
    if isinstance(source, Tensor):
        return _from_tensor(source)
    raise TypeError(f"an image must be a path, a PIL image, an array or a tensor, got {type(source).__name__}")


def _from_array(array: Any) -> Image.Image:
    if array.dtype != np.uint8:
        raise TypeError(f"an array must be uint8, got {array.dtype}; pass values in [0, 1] as a tensor")
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an array must have shape (height, width), (height, width, 3) or 4, got {array.shape}")
    return Image.fromarray(array)


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"a tensor must have shape (3, height, width), got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point():
        raise TypeError(f"a tensor must be uint8 or floating-point, got {image.dtype}")
    image = image.detach()
    low, high = float(image.min()), float(image.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a floating-point tensor must be in [0, 1] and not normalized, got {low:.3g} to {high:.3g}")
    return (image.cpu() * 255).round().to(torch.uint8)
