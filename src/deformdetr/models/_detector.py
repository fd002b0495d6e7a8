"""A model, its criterion and its post-processing behind the interface of torchvision's detectors."""

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
    """Detect objects with the inputs and outputs of torchvision's detectors, so that loops written for those work.

    In training it takes images and targets and returns a dict of losses to add up; in evaluation it takes images and
    returns their detections. Images are resized with antialiasing (unlike by torchvision's detectors), normalized and
    padded here, by the functions that prepare images for evaluation and prediction: a uint8 image on the CPU gives the
    same numbers, bit for bit. One on another device, where it is resized in floating point, gives pixels that differ by
    at most 1 of 255; a floating-point one, whose pixels are not rounded to 8 bits, gives them up to rounding.

    Labels are the channels of the model's logits, from 0, and mean the same in targets and detections: unlike with
    torchvision, 0 is not set aside for the background.

    Args:
        model: Called with images (batch, 3, height, width) and their padding mask, gives `Predictions`; in training, if
            it has a `denoising` part, called with `targets` too.
        criterion: Judges them in training.
        postprocess: Turns them into detections in evaluation.
        image_mean: Of red, green and blue, in [0, 1], subtracted from images.
        image_std: Of red, green and blue; images are divided by it.
        min_size: Pixels of the shorter side after resizing; None leaves images as they are.
        max_size: Limit of the longer side, up to rounding, to which the shorter side gives way; None sets none.

    Raises:
        ValueError: If a size or a deviation is not positive or `max_size` is less than `min_size`.
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
        """Give the weighted losses in training, the detections of every image in evaluation.

        Args:
            images: (3, height, width) each, of any sizes: uint8, or floating-point in [0, 1].
            targets: Needed in training, otherwise ignored: "boxes" (n, 4), xyxy in pixels of the image, and "labels"
                (n,), int64; for a model with masks also "masks" (n, height, width) of the image, not 0 inside objects.

        Returns:
            In training a dict of losses whose sum is to be minimised; otherwise one `Detections` per image, boxes in
            pixels of the image as it was given; of a model with masks also "masks" (n, 1, height, width).

        Raises:
            ValueError: If images have another shape; in training also if targets are missing or do not fit the images,
                or a box has no width or height.
            TypeError: If images are neither uint8 nor floating-point, boxes not floating-point, or labels not int64.
        """
        for index, image in enumerate(images):
            _check_image(index, image)
        prepared = [
            prepare_image(
                image,
                short_side=self.min_size,
                max_size=self.max_size,
                mean=self.image_mean,
                std=self.image_std,
            )
            for image in images
        ]
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
    """Convert one image's target from pixels to what the criterion takes; boxes without an extent become NaN.

    Args:
        index: Of the image, for messages.
        target: In pixels of the image as given.
        size: (height, width) of the image as given.
        input_size: (height, width) that it is resized to, which masks get too.
    """
    missing = {"boxes", "labels"} - target.keys()
    if missing:
        raise ValueError(f"target {index} has no {sorted(missing)}, only {sorted(target)}")
    boxes = target["boxes"]
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes of target {index} must have shape (n, 4), got {tuple(boxes.shape)}")
    if not boxes.is_floating_point():
        raise TypeError(f"boxes of target {index} must be of a floating-point dtype, got {boxes.dtype}")
    # Looking for degenerate boxes would stall a GPU; made NaN, they are refused where the matcher reads its costs.
    boxes = boxes.masked_fill(_is_degenerate(boxes).unsqueeze(-1), torch.nan)
    height, width = size
    fractions: Target = {
        "boxes": scale_boxes(xyxy_to_cxcywh(boxes), (1 / height, 1 / width)),
        "labels": target["labels"],
    }
    if "masks" in target:
        masks = target["masks"]
        if masks.ndim != 3 or masks.shape[1:] != size:
            raise ValueError(
                f"masks of target {index} must have shape (n, {height}, {width}), the image's, got {tuple(masks.shape)}"
            )
        inside = (masks != 0).to(torch.uint8)
        fractions["masks"] = F.interpolate(inside[:, None], input_size, mode="nearest")[:, 0].bool()
    return fractions


def _is_degenerate(boxes: Float[Tensor, "targets 4"]) -> Bool[Tensor, " targets"]:
    return (boxes[:, 2:] <= boxes[:, :2]).any(-1)


def _refuse_degenerate(targets: Sequence[Mapping[str, Tensor]]) -> None:
    for index, target in enumerate(targets):
        degenerate = target["boxes"][_is_degenerate(target["boxes"])]
        if len(degenerate):
            raise ValueError(
                f"boxes must have a positive width and height; target {index} has {degenerate.tolist()} (xyxy, pixels)"
            )
