"""Queries made from noised targets, which train the decoder to undo the noise."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deformdetr._dtypes import at_least_float32
from deformdetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deformdetr.structures import Target


class NoisedQueries(NamedTuple):
    """Groups of noised targets, one after the other, to go before the queries that are matched.

    All groups are alike: they have a place for every target of the image that has most, and places that an image has
    no target for are padding. Target i of an image takes place i of every group.
    """

    content: Float[Tensor, "batch noised d_model"]
    reference_points: Float[Tensor, "batch noised 4"]
    num_groups: int
    has_negatives: bool
    """Whether places without a target are to find nothing, rather than left out of the loss."""

    def attention_mask(self, num_queries: int) -> Bool[Tensor, "queries queries"]:
        """Say which query (row) must not see which (column), with the noised ones before `num_queries` others.

        No query sees the targets through another group's: the matched ones see none, and a group sees itself and them.

        References:
            Li et al., "DN-DETR", CVPR 2022, section "Attention Mask".
        """
        places = self.content.shape[1] // self.num_groups
        device = self.content.device
        group = torch.arange(self.num_groups, device=device)[:, None].expand(-1, places).flatten()
        group = torch.cat([group, torch.full((num_queries,), -1, device=device)])
        return (group[:, None] != group) & (group >= 0)


class Denoising(nn.Module):
    """Noise every target once per group: flip labels, shift and stretch boxes.

    Args:
        num_classes: Labels there are.
        d_model: Channels of the queries' content.
        num_groups: Noised copies of every target.
        label_noise_scale: Probability that a label is drawn anew, from all classes.
        box_noise_scale: Largest shift of a centre, in halves of the box's size, and largest change of its size, as a
            fraction of it; below 1 every centre stays inside its box.
        has_indicator: Whether the last channel of the content is 1, to tell it from other queries, where it is 0.
        eps: Noised boxes are kept between this and its complement.

    Raises:
        ValueError: If a number is out of range.

    References:
        Li et al., "DN-DETR: Accelerate DETR Training by Introducing Query DeNoising", CVPR 2022, sections "Denoising"
        and "Label Embedding".
    """

    def __init__(
        self,
        num_classes: int,
        d_model: int,
        *,
        num_groups: int = 5,
        label_noise_scale: float = 0.2,
        box_noise_scale: float = 0.4,
        has_indicator: bool = True,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        _check_positive("num_groups", num_groups)
        _check_noise(label_noise_scale, box_noise_scale)
        self.num_classes = num_classes
        self.num_groups = num_groups
        self.label_noise_scale = label_noise_scale
        self.box_noise_scale = box_noise_scale
        self.has_indicator = has_indicator
        self.eps = eps
        self.label_embedding = label_embedding(num_classes, d_model - has_indicator)

    def forward(self, targets: Sequence[Target]) -> NoisedQueries:
        """Noise the targets of a batch; there may be none in an image or in all of them.

        Args:
            targets: One per image.
        """
        labels, boxes = pad_targets(targets, self.num_classes)
        labels, boxes = labels.repeat(1, self.num_groups), boxes.repeat(1, self.num_groups, 1)
        is_target = labels < self.num_classes
        content = self.label_embedding(flip_labels(labels, self.num_classes, self.label_noise_scale))
        if self.has_indicator:
            content = torch.cat([content, is_target[..., None].to(content.dtype)], dim=-1)
        noised = shift_and_stretch(boxes, self.box_noise_scale).clamp(self.eps, 1 - self.eps)
        return NoisedQueries(content, torch.where(is_target[..., None], noised, boxes), self.num_groups, False)


class ContrastiveDenoising(nn.Module):
    """Noise every target twice per group: a little, to be found again, and more, to be refused.

    A group holds the positives of all targets first, then the negatives. There are as many groups as fit into
    `dn_number` positives of the image with most targets, and at least one.

    Args:
        num_classes: Labels there are.
        d_model: Channels of the queries' content.
        dn_number: Positives per image, about; as many negatives come with them.
        label_noise_ratio: Twice the probability that a label is drawn anew, from all classes.
        box_noise_scale: Each side of a positive's box is moved by up to this many halves of the box's size, that of a
            negative by one to two times as much.
        eps: Noised boxes are kept between this and its complement.

    Raises:
        ValueError: If a number is out of range.

    References:
        Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection", ICLR 2023,
        section 3.3.
    """

    def __init__(
        self,
        num_classes: int,
        d_model: int,
        *,
        dn_number: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 0.4,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        _check_positive("dn_number", dn_number)
        _check_noise(label_noise_ratio, box_noise_scale)
        self.num_classes = num_classes
        self.dn_number = dn_number
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.eps = eps
        self.label_embedding = label_embedding(num_classes, d_model)

    def forward(self, targets: Sequence[Target]) -> NoisedQueries:
        """Noise the targets of a batch; there may be none in an image or in all of them.

        Args:
            targets: One per image.
        """
        labels, boxes = pad_targets(targets, self.num_classes)
        places = labels.shape[1]
        num_groups = max(1, self.dn_number // max(1, places))
        labels, boxes = labels.repeat(1, 2 * num_groups), boxes.repeat(1, 2 * num_groups, 1)
        is_target = labels < self.num_classes
        is_negative = (torch.arange(2 * num_groups, device=boxes.device) % 2)[:, None].expand(-1, places).flatten()
        content = self.label_embedding(flip_labels(labels, self.num_classes, self.label_noise_ratio / 2))
        noised = move_sides(boxes, self.box_noise_scale, is_negative.bool()).clamp(self.eps, 1 - self.eps)
        return NoisedQueries(content, torch.where(is_target[..., None], noised, boxes), num_groups, True)


def label_embedding(num_classes: int, channels: int) -> nn.Embedding:
    """Build an embedding of labels with one more row, of zeros, for padding."""
    return nn.Embedding(num_classes + 1, channels, padding_idx=num_classes)


def pad_targets(
    targets: Sequence[Target], num_classes: int
) -> tuple[Int64[Tensor, "batch places"], Float[Tensor, "batch places 4"]]:
    """Stack labels and boxes of all images; padding has the label `num_classes` and a box of halves."""
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True, padding_value=0.5)
    # A label that is no class would stop a GPU for good at the embedding; the matcher reports it.
    return labels.clamp(0, num_classes), at_least_float32(boxes)


def flip_labels(
    labels: Int64[Tensor, "batch noised"], num_classes: int, probability: float
) -> Int64[Tensor, "batch noised"]:
    """Replace labels by random ones, which may be the same, with a probability; padding stays."""
    is_flipped = torch.rand_like(labels, dtype=torch.float32) < probability
    return torch.where(is_flipped & (labels < num_classes), torch.randint_like(labels, num_classes), labels)


def shift_and_stretch(boxes: Float[Tensor, "batch noised 4"], scale: float) -> Float[Tensor, "batch noised 4"]:
    """Move centres of cxcywh boxes by up to `scale` halves of their size, and change sizes by up to `scale` of it."""
    size = boxes[..., 2:]
    extent = torch.cat([size / 2, size], dim=-1)
    return boxes + (torch.rand_like(boxes) * 2 - 1) * extent * scale


def move_sides(
    boxes: Float[Tensor, "batch noised 4"], scale: float, is_negative: Bool[Tensor, " noised"]
) -> Float[Tensor, "batch noised 4"]:
    """Move the four sides of cxcywh boxes inside the image, in or out, by up to `scale` halves of their distance.

    Sides of negatives move by `scale` to `2 * scale` halves; they may pass each other, which gives a negative size.
    """
    half = boxes[..., 2:].repeat(1, 1, 2) / 2
    direction = torch.randint_like(boxes, 2) * 2 - 1
    distance = torch.rand_like(boxes) + is_negative[:, None]
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + direction * distance * half * scale).clamp(0, 1))


def _check_positive(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")


def _check_noise(label_noise: float, box_noise: float) -> None:
    if not 0 <= label_noise <= 1 or box_noise < 0:
        raise ValueError(f"label noise must lie in [0, 1] and box noise be at least 0, got {label_noise}, {box_noise}")
