"""Denoising queries: noised targets that the decoder learns to restore."""

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
    """Groups of noised targets, which a model prepends to its matched queries.

    Every group has as many places as the image with most targets has targets. Target i of an image takes place i of
    every group; the remaining places are padding.

    Examples:
        >>> noised = NoisedQueries(torch.rand(1, 2, 8), torch.rand(1, 2, 4), num_groups=2, has_negatives=False)
        >>> noised.attention_mask(num_queries=1)
        tensor([[False,  True, False],
                [ True, False, False],
                [ True,  True, False]])
    """

    content: Float[Tensor, "batch noised d_model"]
    reference_points: Float[Tensor, "batch noised 4"]
    num_groups: int
    has_negatives: bool
    """Whether places without a target are trained as background, rather than ignored."""

    def attention_mask(self, num_queries: int) -> Bool[Tensor, "queries queries"]:
        """Return a mask, True where a query (row) must not attend to another (column).

        A group attends to itself and to the matched queries, and these to each other. So no query sees the targets
        through another group.

        Args:
            num_queries: Number of matched queries, which follow the noised ones.

        References:
            Li et al., "DN-DETR", CVPR 2022, section "Attention Mask".
        """
        places = self.content.shape[1] // self.num_groups
        device = self.content.device
        group = torch.arange(self.num_groups, device=device)[:, None].expand(-1, places).flatten()
        group = torch.cat([group, torch.full((num_queries,), -1, device=device)])
        return (group[:, None] != group) & (group >= 0)


class Denoising(nn.Module):
    """Denoising queries of DN-DETR: every target once per group, with a flipped label and a shifted, stretched box.

    Examples:
        >>> target = {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
        >>> Denoising(num_classes=3, d_model=64, num_groups=5)([target]).content.shape
        torch.Size([1, 5, 64])

    Args:
        num_classes: Number of labels.
        d_model: Channels of the queries' content.
        num_groups: Noised copies of every target.
        label_noise_scale: Probability that a label is replaced by one drawn from all classes.
        box_noise_scale: Largest shift of a center, as a fraction of half the size, and largest relative change of the
            size. Below 1 every center stays inside its box.
        has_indicator: Whether the last content channel is an indicator: 0 for matched queries, 1 for denoising queries.
        eps: Lower bound of a noised coordinate, and of its distance from 1.

    Raises:
        ValueError: If an argument is out of range.

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
        """Return noised copies of the targets of a batch.

        Args:
            targets: One per image; each may be empty.
        """
        labels, boxes = pad_targets(targets, self.num_classes)
        labels, boxes = labels.repeat(1, self.num_groups), boxes.repeat(1, self.num_groups, 1)
        is_target = labels < self.num_classes
        content = self.label_embedding(flip_labels(labels, self.num_classes, self.label_noise_scale))
        if self.has_indicator:
            content = torch.cat([content, is_target[..., None].to(content.dtype)], dim=-1)
        noised = shift_and_stretch(boxes, self.box_noise_scale).clamp(self.eps, 1 - self.eps)
        return NoisedQueries(content, torch.where(is_target[..., None], noised, boxes), self.num_groups, False)

    def num_positives(self, targets: Sequence[Target]) -> int:
        """Return the number of denoising queries of a batch that have a target."""
        return self.num_groups * sum(len(target["labels"]) for target in targets)


class ContrastiveDenoising(nn.Module):
    """Denoising queries of DINO: every target twice per group, as a positive of little noise and a negative of more.

    Positives are trained to restore the target, negatives as background. A group holds all positives, then all
    negatives. The number of groups is `dn_number` divided by the largest number of targets in an image, at least one.

    Examples:
        >>> target = {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
        >>> ContrastiveDenoising(num_classes=3, d_model=64, dn_number=100)([target]).content.shape
        torch.Size([1, 200, 64])

    Args:
        num_classes: Number of labels.
        d_model: Channels of the queries' content.
        dn_number: Approximate number of positives per image; there are as many negatives.
        label_noise_ratio: Twice the probability that a label is replaced by one drawn from all classes.
        box_noise_scale: Largest move of each side of a positive's box, as a fraction of half the box's size. Sides of
            negatives move by one to two times as much.
        eps: Lower bound of a noised coordinate, and of its distance from 1.

    Raises:
        ValueError: If an argument is out of range.

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
        """Return noised copies of the targets of a batch.

        Args:
            targets: One per image; each may be empty.
        """
        labels, boxes = pad_targets(targets, self.num_classes)
        places = labels.shape[1]
        num_groups = self._num_groups(places)
        labels, boxes = labels.repeat(1, 2 * num_groups), boxes.repeat(1, 2 * num_groups, 1)
        is_target = labels < self.num_classes
        is_negative = (torch.arange(2 * num_groups, device=boxes.device) % 2)[:, None].expand(-1, places).flatten()
        content = self.label_embedding(flip_labels(labels, self.num_classes, self.label_noise_ratio / 2))
        noised = move_sides(boxes, self.box_noise_scale, is_negative.bool()).clamp(self.eps, 1 - self.eps)
        return NoisedQueries(content, torch.where(is_target[..., None], noised, boxes), num_groups, True)

    def num_positives(self, targets: Sequence[Target]) -> int:
        """Return the number of denoising queries of a batch that have a target and are not negatives."""
        counts = [len(target["labels"]) for target in targets]
        return self._num_groups(max(counts, default=0)) * sum(counts)

    def _num_groups(self, places: int) -> int:
        return max(1, self.dn_number // max(1, places))


def label_embedding(num_classes: int, channels: int) -> nn.Embedding:
    """Return an embedding of labels, whose last row, of zeros, is for padding."""
    return nn.Embedding(num_classes + 1, channels, padding_idx=num_classes)


def pad_targets(
    targets: Sequence[Target], num_classes: int
) -> tuple[Int64[Tensor, "batch places"], Float[Tensor, "batch places 4"]]:
    """Return padded labels and boxes of all images; padding has the label `num_classes` and coordinates of 0.5."""
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True, padding_value=0.5)
    # An invalid label would crash the embedding's CUDA kernel. The matcher raises an error for it.
    return labels.clamp(0, num_classes), at_least_float32(boxes)


def flip_labels(
    labels: Int64[Tensor, "batch noised"], num_classes: int, probability: float
) -> Int64[Tensor, "batch noised"]:
    """Replace labels with a given probability by ones drawn from all classes; padding stays."""
    is_flipped = torch.rand_like(labels, dtype=torch.float32) < probability
    return torch.where(is_flipped & (labels < num_classes), torch.randint_like(labels, num_classes), labels)


def shift_and_stretch(boxes: Float[Tensor, "batch noised 4"], scale: float) -> Float[Tensor, "batch noised 4"]:
    """Move the centers of cxcywh boxes by up to `scale` times half their size, and change sizes by up to `scale`."""
    size = boxes[..., 2:]
    extent = torch.cat([size / 2, size], dim=-1)
    return boxes + (torch.rand_like(boxes) * 2 - 1) * extent * scale


def move_sides(
    boxes: Float[Tensor, "batch noised 4"], scale: float, is_negative: Bool[Tensor, " noised"]
) -> Float[Tensor, "batch noised 4"]:
    """Move the sides of cxcywh boxes in or out by up to `scale` times half the box's size, within the image.

    Sides of negatives move by one to two times as much. They may pass each other, which gives a negative size.
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
