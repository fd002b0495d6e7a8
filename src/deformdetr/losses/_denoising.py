"""Pairs of denoising queries and the targets that they reconstruct."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from deformdetr.structures import DenoisingPredictions, LayerPredictions, Target


def denoising_pairs(outputs: DenoisingPredictions, targets: Sequence[Target]) -> Int64[Tensor, "3 pairs"]:
    """Return (image, query, target) of every denoising query with a target, on the CPU.

    Targets are numbered over the batch. Every target has one query in every group.

    Raises:
        ValueError: If the predictions were made for other targets.
    """
    images, queries = outputs["pred_logits"].shape[:2]
    groups = outputs["num_groups"]
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    if images != len(targets):
        raise ValueError(f"there are denoising queries for {images} images, but targets for {len(targets)}")
    if queries % groups or queries // groups < most:
        raise ValueError(
            f"{queries} denoising queries in {groups} groups do not fit {most} targets; was the model given the same "
            "targets?"
        )
    first_of_group = torch.arange(groups)[:, None] * (queries // groups)
    pairs, start = [], 0
    for image, count in enumerate(counts):
        index = torch.arange(count).expand(groups, -1)
        query = (first_of_group + index).flatten()
        pairs.append(torch.stack([torch.full_like(query, image), query, (start + index).flatten()]))
        start += count
    return torch.cat(pairs, dim=1)


def select_paired(
    layers: Sequence[LayerPredictions], pairs: Int64[Tensor, "3 pairs"]
) -> tuple[list[LayerPredictions], Int64[Tensor, "3 pairs"]]:
    """Select the predictions that have a target, flattened into one image, and number the pairs accordingly."""
    image, query, target = pairs.unbind(0)
    selected: list[LayerPredictions] = [
        {
            "pred_logits": layer["pred_logits"][image, query].unsqueeze(0),
            "pred_boxes": layer["pred_boxes"][image, query].unsqueeze(0),
        }
        for layer in layers
    ]
    place = torch.arange(len(target), device=target.device)
    return selected, torch.stack([torch.zeros_like(place), place, target])
