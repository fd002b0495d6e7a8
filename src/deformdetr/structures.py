"""What crosses the boundaries of the library: batches of images, predictions, targets and detections."""

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
    """Images of different sizes, padded to a common one."""

    images: Float[Tensor, "batch 3 height width"]
    """Padded at the bottom and on the right."""
    padding_mask: Bool[Tensor, "batch height width"]
    """True at padded pixels."""

    @classmethod
    def from_images(cls, images: Sequence[Num[Tensor, "_ _ _"]], size_divisor: int = 1) -> "ImageBatch":
        """Pad images with zeros at the bottom and on the right to the size of the largest.

        Args:
            images: (3, height, width) each, of one dtype and device.
            size_divisor: The common height and width are rounded up to multiples of it.

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
                    f"images must share one dtype and device: image 0 is {first.dtype} on {first.device}, "
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
        """Copy both tensors to page-locked memory, from which they move to a GPU without waiting."""
        return ImageBatch(self.images.pin_memory(), self.padding_mask.pin_memory())


class LayerPredictions(TypedDict):
    """What one decoder layer, or the encoder's proposals, predicts."""

    pred_logits: Float[Tensor, "batch queries classes"]
    pred_boxes: Float[Tensor, "batch queries 4"]
    """cxcywh as fractions of the image without its padding, in [0, 1]."""


class DenoisingPredictions(LayerPredictions):
    """What the decoder makes of noised targets: place i of every group stands for target i of its image."""

    aux_outputs: NotRequired[list[LayerPredictions]]
    """Every decoder layer but the last, first to last."""
    num_groups: int
    """Equal parts of the queries, in each of which every target is to be found once."""
    has_negatives: bool
    """Whether the other queries are to find nothing, rather than left out of the loss."""


class Predictions(LayerPredictions):
    """What a model predicts: the last decoder layer's output and, in training, that of the others."""

    aux_outputs: NotRequired[list[LayerPredictions]]
    """Every decoder layer but the last, first to last."""
    enc_outputs: NotRequired[LayerPredictions]
    """The proposals of a two-stage model; its class channel 0 says whether there is an object."""
    interm_outputs: NotRequired[LayerPredictions]
    """The chosen proposals of a two-stage model that gives them their classes."""
    dn_outputs: NotRequired[DenoisingPredictions]
    """In training, of a model that denoises."""
    pred_masks: NotRequired[Float[Tensor, "batch queries mask_height mask_width"]]
    """Logits of the padded images, of the last layer alone, of a model with masks; their stride is that of the finest
    feature that its mask head reads: 4 with the backbones that configs describe."""
    valid_ratios: NotRequired[Float[Tensor, "batch 2"]]
    """Share of the masks' width and height that is not padding, (x, y)."""


class Target(TypedDict):
    """What there is to find in one image."""

    boxes: Float[Tensor, "targets 4"]
    """cxcywh as fractions of the image, in [0, 1]."""
    labels: Int64[Tensor, " targets"]
    """Channels of `pred_logits`, from 0."""
    image_id: NotRequired[int]
    orig_size: NotRequired[Int64[Tensor, "2"]]
    """(height, width) of the image file, in pixels."""
    size: NotRequired[Int64[Tensor, "2"]]
    """(height, width) of the image after its transforms and before padding, in pixels."""
    area: NotRequired[Float[Tensor, " targets"]]
    """Of the objects, in square pixels after the transforms."""
    iscrowd: NotRequired[Int64[Tensor, " targets"]]
    """1 where a box surrounds a crowd."""
    masks: NotRequired[Bool[Tensor, "targets height width"]]
    """True inside the objects, at `size`, the image's after its transforms and before padding."""


class Detections(TypedDict):
    """What was found in one image; `SigmoidPostProcess` gives the best first."""

    boxes: Float[Tensor, "detections 4"]
    """xyxy in pixels of the image."""
    scores: Float[Tensor, " detections"]
    """In [0, 1]."""
    labels: Int64[Tensor, " detections"]
    masks: NotRequired[Float[Tensor, "detections 1 height width"] | Bool[Tensor, "detections 1 height width"]]
    """Of a model with masks, in pixels of the image: probabilities, or True inside the object."""
