"""Which of the decoder's predictions for noised targets stand for which target."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from deformdetr.structures import DenoisingPredictions, LayerPredictions, Target


def count_noised(outputs: DenoisingPredictions, targets: Sequence[Target]) -> int:
    """Count the targets of a batch once for every group: the predictions that are to find one.

    Raises:
        ValueError: If predictions and targets do not fit together.
    """
    images, queries = outputs["pred_logits"].shape[:2]
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    if images != len(targets):
        raise ValueError(f"there are predictions for noised targets of {images} images, but targets for {len(targets)}")
    if queries % outputs["num_groups"] or queries // outputs["num_groups"] < most:
        raise ValueError(
            f"{queries} predictions for noised targets in {outputs['num_groups']} groups do not fit {most} targets; "
            "was the model given the same ones?"
        )
    return outputs["num_groups"] * sum(counts)


def noised_pairs(outputs: DenoisingPredictions, targets: Sequence[Target]) -> Int64[Tensor, "3 pairs"]:
    """Give the image, the query and the target (counted over the batch) of every pair, on the CPU."""
    places = outputs["pred_logits"].shape[1] // outputs["num_groups"]
    first_of_group = torch.arange(outputs["num_groups"])[:, None] * places
    pairs, start = [], 0
    for image, target in enumerate(targets):
        index = torch.arange(len(target["labels"])).expand(outputs["num_groups"], -1)
        query = (first_of_group + index).flatten()
        pairs.append(torch.stack([torch.full_like(query, image), query, (start + index).flatten()]))
        start += len(target["labels"])
    return torch.cat(pairs, dim=1)


def only_paired(
    layers: Sequence[LayerPredictions], pairs: Int64[Tensor, "3 pairs"]
) -> tuple[list[LayerPredictions], Int64[Tensor, "3 pairs"]]:
    """Keep the predictions that are to find a target, as those of one image."""
    image, query, target = pairs.unbind(0)
    kept: list[LayerPredictions] = [
        {
            "pred_logits": layer["pred_logits"][image, query].unsqueeze(0),
            "pred_boxes": layer["pred_boxes"][image, query].unsqueeze(0),
        }
        for layer in layers
    ]
    place = torch.arange(len(target), device=target.device)
    return kept, torch.stack([torch.zeros_like(place), place, target])
