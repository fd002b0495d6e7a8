"""Noised targets before the queries of a model, and their predictions apart from the others'."""

from collections.abc import Sequence

import torch
from torch import nn

from deformdetr.nn import NoisedQueries, Queries
from deformdetr.structures import DenoisingPredictions, LayerPredictions


def needs_targets(model: nn.Module) -> bool:
    """Say whether a model is to be called with `targets` in training, because it denoises."""
    return getattr(model, "denoising", None) is not None


def put_before(noised: NoisedQueries, queries: Queries) -> Queries:
    """Let noised targets go before a model's own queries, whose decoder computes the positions."""
    return queries._replace(
        content=torch.cat([noised.content.to(queries.content.dtype), queries.content], dim=1),
        reference_points=torch.cat([noised.reference_points, queries.reference_points], dim=1),
    )


def split_layers(
    layers: Sequence[LayerPredictions], count: int
) -> tuple[list[LayerPredictions], list[LayerPredictions]]:
    """Take the predictions of the first queries, and those of the others, from every layer's."""
    first: list[LayerPredictions] = [
        {"pred_logits": layer["pred_logits"][:, :count], "pred_boxes": layer["pred_boxes"][:, :count]}
        for layer in layers
    ]
    others: list[LayerPredictions] = [
        {"pred_logits": layer["pred_logits"][:, count:], "pred_boxes": layer["pred_boxes"][:, count:]}
        for layer in layers
    ]
    return first, others


def restored_outputs(
    layers: Sequence[LayerPredictions], noised: NoisedQueries, *, aux_loss: bool
) -> DenoisingPredictions:
    """Give what the layers make of noised targets in the form that the criterion takes."""
    *before, last = layers
    outputs: DenoisingPredictions = {
        "pred_logits": last["pred_logits"],
        "pred_boxes": last["pred_boxes"],
        "num_groups": noised.num_groups,
        "has_negatives": noised.has_negatives,
    }
    if aux_loss:
        outputs["aux_outputs"] = before
    return outputs
