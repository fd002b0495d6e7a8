"""The types that models, losses and datasets exchange: batches of images, predictions, targets and detections."""

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

__all__ = [
    "DenoisingPredictions",
    "Detections",
    "ImageBatch",
    "LayerPredictions",
    "Predictions",
    "Target",
]


class ImageBatch(NamedTuple):
    """Images of different sizes, padded to a common size.

    Examples:
        >>> batch = ImageBatch.from_images([torch.rand(3, 4, 6), torch.rand(3, 5, 3)])
        >>> batch.images.shape
        torch.Size([2, 3, 5, 6])
        >>> batch.padding_mask[1, 0]
        tensor([False, False, False,  True,  True,  True])
    """

    images: Float[Tensor, "batch 3 height width"]
    """Padded at the bottom and on the right."""
    padding_mask: Bool[Tensor, "batch height width"]
    """True at padded pixels."""

    @classmethod
    def from_images(cls, images: Sequence[Num[Tensor, "_ _ _"]], size_divisor: int = 1) -> "ImageBatch":
        """Pad images with zeros at the bottom and on the right to the largest height and width.

        Args:
            images: (3, height, width) each, all of the same dtype and device.
            size_divisor: Height and width of the batch are rounded up to multiples of it.

        Raises:
            ValueError: If there are no images, an image is empty or not (3, height, width), dtypes or devices differ,
                or `size_divisor` is not positive.
        """
        if size_divisor < 1:
            raise ValueError(f"size_divisor must be positive, got {size_divisor}")
        if not images:
            raise ValueError("a batch needs at least one image, got none")
        first = images[0]
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
                raise ValueError(f"image {index} must have shape (3, height, width), got {tuple(image.shape)}")
            if (image.dtype, image.device) != (first.dtype, first.device):
                raise ValueError(
                    f"images must have the same dtype and device: image 0 is {first.dtype} on {first.device}, "
                    f"image {index} is {image.dtype} on {image.device}"
                )
        height, width = (
            -(-max(image.shape[axis] for image in images) // size_divisor) * size_divisor for axis in (1, 2)
        )
        batch = first.new_zeros(len(images), 3, height, width)
        padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=first.device)
        for index, image in enumerate(images):
            _, h, w = image.shape
            batch[index, :, :h, :w] = image
            padding_mask[index, :h, :w] = False
        return cls(batch, padding_mask)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ImageBatch":
        """Move both tensors to a device; `non_blocking` as in `Tensor.to`."""
        return ImageBatch(
            self.images.to(device, non_blocking=non_blocking), self.padding_mask.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> "ImageBatch":
        """Copy both tensors to page-locked memory, from which a GPU copies asynchronously."""
        return ImageBatch(self.images.pin_memory(), self.padding_mask.pin_memory())


class LayerPredictions(TypedDict):
    """Predictions of one decoder layer, or the encoder's proposals.

    Examples:
        >>> predictions: LayerPredictions = {
        ...     "pred_logits": torch.zeros(2, 300, 91),
        ...     "pred_boxes": torch.full((2, 300, 4), 0.5),
        ... }
    """

    pred_logits: Float[Tensor, "batch queries classes"]
    pred_boxes: Float[Tensor, "batch queries 4"]
    """cxcywh as fractions of the unpadded image, in [0, 1]."""


class DenoisingPredictions(LayerPredictions):
    """Predictions of the denoising queries: in every group, query i of an image reconstructs target i.

    Examples:
        >>> predictions: DenoisingPredictions = {
        ...     "pred_logits": torch.zeros(2, 50, 91),
        ...     "pred_boxes": torch.full((2, 50, 4), 0.5),
        ...     "num_groups": 5,
        ...     "has_negatives": False,
        ... }
    """

    aux_outputs: NotRequired[list[LayerPredictions]]
    """All decoder layers except the last, in order."""
    num_groups: int
    """Number of groups, equal parts of the queries; each reconstructs every target once."""
    has_negatives: bool
    """Whether unmatched denoising queries are trained as background, rather than ignored."""


class Predictions(LayerPredictions):
    """Predictions of a model: of its last decoder layer and, in training, of all others.

    Examples:
        >>> last: LayerPredictions = {"pred_logits": torch.zeros(2, 300, 91), "pred_boxes": torch.zeros(2, 300, 4)}
        >>> predictions: Predictions = {**last, "aux_outputs": [last] * 5}
    """

    aux_outputs: NotRequired[list[LayerPredictions]]
    """All decoder layers except the last, in order."""
    enc_outputs: NotRequired[LayerPredictions]
    """Proposals of a two-stage model for every pixel; class channel 0 is the objectness logit."""
    interm_outputs: NotRequired[LayerPredictions]
    """Selected proposals of a two-stage model whose proposals have classes (DINO)."""
    dn_outputs: NotRequired[DenoisingPredictions]
    """In training, of a model with denoising queries."""
    pred_masks: NotRequired[Float[Tensor, "batch queries mask_height mask_width"]]
    """Mask logits of the last layer over the padded images, of a model with masks. Their stride is that of the finest
    feature that the mask head reads: 4 with the backbones that configs describe."""
    valid_ratios: NotRequired[Float[Tensor, "batch 2"]]
    """Fraction of the masks' width and height that is not padding, (x, y)."""


class Target(TypedDict):
    """Objects of one image.

    Examples:
        >>> target: Target = {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]]), "labels": torch.tensor([17])}
    """

    boxes: Float[Tensor, "targets 4"]
    """cxcywh as fractions of the image, in [0, 1]."""
    labels: Int64[Tensor, " targets"]
    """Classes, as channels of `pred_logits`, from 0."""
    image_id: NotRequired[int | str]
    orig_size: NotRequired[Int64[Tensor, "2"]]
    """(height, width) of the image file, in pixels."""
    size: NotRequired[Int64[Tensor, "2"]]
    """(height, width) of the image after its transforms and before padding, in pixels."""
    area: NotRequired[Float[Tensor, " targets"]]
    """Areas of the objects, in square pixels after the transforms."""
    iscrowd: NotRequired[Int64[Tensor, " targets"]]
    """1 where a box encloses a crowd."""
    masks: NotRequired[Bool[Tensor, "targets height width"]]
    """True inside the objects, at `size`: after the image's transforms and before padding."""


class Detections(TypedDict):
    """Detections in one image; `SigmoidPostProcess` sorts them by score, highest first.

    Examples:
        >>> detections: Detections = {
        ...     "boxes": torch.tensor([[10.0, 20.0, 110.0, 220.0]]),
        ...     "scores": torch.tensor([0.9]),
        ...     "labels": torch.tensor([17]),
        ... }
    """

    boxes: Float[Tensor, "detections 4"]
    """xyxy in pixels."""
    scores: Float[Tensor, " detections"]
    """In [0, 1]."""
    labels: Int64[Tensor, " detections"]
    masks: NotRequired[Float[Tensor, "detections 1 height width"] | Bool[Tensor, "detections 1 height width"]]
    """Of a model with masks, at the size of the image: probabilities, or True inside the object."""


class PanopticSegmentation(TypedDict):
    """Segments of one image that do not overlap: instances of things, and regions of stuff.

    Examples:
        >>> segmentation: PanopticSegmentation = {
        ...     "segment_map": torch.tensor([[1, 1, 2], [1, 1, 0]]),
        ...     "labels": torch.tensor([17, 120]),
        ... }
    """

    segment_map: Int64[Tensor, "height width"]
    """Segment of every pixel, counted from 1 in the order of `labels`; 0 belongs to none (void)."""
    labels: Int64[Tensor, " segments"]
    scores: NotRequired[Float[Tensor, " segments"]]
    """In [0, 1]."""
    iscrowd: NotRequired[Int64[Tensor, " segments"]]
    """1 where a segment of the ground truth holds a crowd."""
