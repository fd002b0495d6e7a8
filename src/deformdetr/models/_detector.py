"""A model with its criterion and post-processing, behind the interface of torchvision's detectors."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr.boxes import scale_boxes, xyxy_to_cxcywh
from deformdetr.losses import SetCriterion
from deformdetr.models._denoising import needs_targets
from deformdetr.models._postprocess import PostProcess
from deformdetr.models._preprocess import IMAGENET_MEAN, IMAGENET_STD, prepare_image
from deformdetr.structures import Detections, ImageBatch, Target


class Detector(nn.Module):
    """Detect objects, with the inputs and outputs of torchvision's detectors, so that their training loops work.

    In training it takes images and targets and returns a dict of losses to add up. In evaluation it takes images and
    returns their detections.

    Images are resized, normalized and padded by the functions that also prepare images for evaluation and prediction.
    Unlike torchvision's detectors they resize with antialiasing. A uint8 image on the CPU gives the same numbers as
    there, bit for bit. On another device it is resized in floating point, and pixels differ by at most 1 of 255.
    Floating-point images are not rounded to 8 bits.

    Labels are indices of the model's logits, from 0, in targets and detections. Unlike in torchvision, 0 is not the
    background.

    Examples:
        >>> import deformdetr
        >>> config = deformdetr.preset("demo")
        >>> detector = Detector(config.build(), config.build_criterion(), config.build_postprocess(), min_size=64)
        >>> with torch.no_grad():
        ...     detections = detector.eval()([torch.rand(3, 64, 96), torch.rand(3, 80, 64)])
        >>> [found["boxes"].shape for found in detections]
        [torch.Size([90, 4]), torch.Size([90, 4])]

    Args:
        model: Returns `Predictions` from images (batch, 3, height, width) and their padding mask. In training a model
            that denoises gets `targets` too.
        criterion: Computes the losses in training.
        postprocess: Computes the detections in evaluation.
        image_mean: Mean of red, green and blue, in [0, 1], subtracted from images.
        image_std: Standard deviation of red, green and blue, by which images are divided.
        min_size: Pixels of the shorter side after resizing; None leaves images as they are.
        max_size: Upper limit of the longer side, up to rounding; None sets no limit.

    Raises:
        ValueError: If a size or a standard deviation is not positive, or `max_size` is less than `min_size`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SetCriterion,
        postprocess: PostProcess,
        *,
        image_mean: tuple[float, float, float] = IMAGENET_MEAN,
        image_std: tuple[float, float, float] = IMAGENET_STD,
        min_size: int | None = 800,
        max_size: int | None = 1333,
    ) -> None:
        super().__init__()
        if min(image_std) <= 0:
            raise ValueError(f"image_std must be positive, got {image_std}")
        if min_size is not None and (min_size < 1 or (max_size is not None and max_size < min_size)):
            raise ValueError(f"min_size ({min_size}) must be positive and at most max_size ({max_size})")
        self.model = model
        self.criterion = criterion
        self.postprocess = postprocess
        self.min_size = min_size
        self.max_size = max_size
        self.image_mean: Tensor
        self.image_std: Tensor
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Sequence[Num[Tensor, "_ _ _"]], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Float[Tensor, ""]] | list[Detections]:
        """Return the weighted losses in training, and the detections of every image in evaluation.

        Args:
            images: (3, height, width) each, of any sizes: uint8, or floating-point in [0, 1].
            targets: One per image; required in training, otherwise ignored. "boxes" (n, 4) are xyxy in pixels of the
                image, "labels" (n,) int64. A model with masks needs "masks" (n, height, width), nonzero inside objects.

        Returns:
            In training a dict of losses, whose sum is to be minimized. In evaluation one `Detections` per image, with
            boxes in pixels of the given image, and "masks" (n, 1, height, width) of a model with masks.

        Raises:
            ValueError: If images have another shape. In training also if targets are missing or do not fit the images,
                or a box has no width or height.
            TypeError: If images are neither uint8 nor floating-point, boxes not floating-point, or labels not int64.
        """
        prepared = [self._prepare(index, image) for index, image in enumerate(images)]
        batch = ImageBatch.from_images(prepared)
        if not self.training:
            return self.postprocess(self.model(*batch), [_size(image) for image in images])
        if targets is None:
            raise ValueError("targets must be given in training mode")
        if len(targets) != len(images):
            raise ValueError(f"there are {len(images)} images, but targets for {len(targets)}")
        fractions = [
            _to_fractions(index, target, _size(image), _size(input_image))
            for index, (target, image, input_image) in enumerate(zip(targets, images, prepared, strict=True))
        ]
        outputs = self.model(*batch, targets=fractions) if needs_targets(self.model) else self.model(*batch)
        try:
            losses: dict[str, Tensor] = self.criterion(outputs, fractions)
        except ValueError:
            _refuse_degenerate(targets)
            raise
        return self.criterion.weighted(losses)

    def _prepare(self, index: int, image: Tensor) -> Tensor:
        _check_image(index, image)
        return prepare_image(
            image, short_side=self.min_size, max_size=self.max_size, mean=self.image_mean, std=self.image_std
        )


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _check_image(index: int, image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"image {index} must have shape (3, height, width), got {tuple(image.shape)}")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise TypeError(f"image {index} must be uint8 or of a floating-point dtype, in [0, 1], got {image.dtype}")


def _to_fractions(
    index: int, target: Mapping[str, Tensor], size: tuple[int, int], input_size: tuple[int, int]
) -> Target:
    """Convert a target from pixels to fractions of its image; boxes without width or height become NaN.

    Args:
        index: Index of the image, for messages.
        target: In pixels of the given image.
        size: (height, width) of the given image.
        input_size: (height, width) after resizing, which masks get too.
    """
    missing = {"boxes", "labels"} - target.keys()
    if missing:
        raise ValueError(f"target {index} has no {sorted(missing)}, only {sorted(target)}")
    boxes = target["boxes"]
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes of target {index} must have shape (n, 4), got {tuple(boxes.shape)}")
    if not boxes.is_floating_point():
        raise TypeError(f"boxes of target {index} must be of a floating-point dtype, got {boxes.dtype}")
    # Raising an error for degenerate boxes here would synchronize with the GPU. The matcher raises one for NaN.
    boxes = boxes.masked_fill(_is_degenerate(boxes).unsqueeze(-1), torch.nan)
    height, width = size
    fractions: Target = {
        "boxes": scale_boxes(xyxy_to_cxcywh(boxes), (1 / height, 1 / width)),
        "labels": target["labels"],
    }
    if "masks" in target:
        fractions["masks"] = _resize_masks(index, target["masks"], size, input_size)
    return fractions


def _resize_masks(index: int, masks: Tensor, size: tuple[int, int], input_size: tuple[int, int]) -> Tensor:
    if masks.ndim != 3 or masks.shape[1:] != size:
        raise ValueError(
            f"masks of target {index} must have shape (n, {size[0]}, {size[1]}), the image's, got {tuple(masks.shape)}"
        )
    inside = (masks != 0).to(torch.uint8)
    return F.interpolate(inside[:, None], input_size, mode="nearest")[:, 0].bool()


def _is_degenerate(boxes: Float[Tensor, "targets 4"]) -> Bool[Tensor, " targets"]:
    return (boxes[:, 2:] <= boxes[:, :2]).any(-1)


def _refuse_degenerate(targets: Sequence[Mapping[str, Tensor]]) -> None:
    for index, target in enumerate(targets):
        degenerate = target["boxes"][_is_degenerate(target["boxes"])]
        if len(degenerate):
            raise ValueError(
                f"boxes must have a positive width and height; target {index} has {degenerate.tolist()} (xyxy, pixels)"
            )
