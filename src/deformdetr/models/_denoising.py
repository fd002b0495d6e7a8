"""Denoising queries, prepended to the queries of a model."""

from collections.abc import Sequence

import torch
from torch import nn

from deformdetr.nn import ContrastiveDenoising, Denoising, NoisedQueries, Queries
from deformdetr.structures import Target


def needs_targets(model: nn.Module) -> bool:
    """Return whether a model denoises, so that training calls it with `targets`.

    Examples:
        >>> import deformdetr
        >>> needs_targets(deformdetr.preset("demo").build())
        False
    """
    return getattr(model, "denoising", None) is not None


def noise_targets(
    denoising: Denoising | ContrastiveDenoising, targets: Sequence[Target] | None, num_images: int
) -> NoisedQueries:
    """Return the denoising queries of a batch.

    Raises:
        ValueError: If targets are missing, or are not one per image.
    """
    if targets is None:
        raise ValueError("targets must be given in training to a model that denoises them")
    if len(targets) != num_images:
        raise ValueError(f"there are {num_images} images, but targets for {len(targets)}")
    noised: NoisedQueries = denoising(targets)
    return noised


def prepend(noised: NoisedQueries, queries: Queries) -> Queries:
    """Return the denoising queries followed by those of the model, with the attention mask that separates groups."""
    return queries._replace(
        content=torch.cat([noised.content.to(queries.content.dtype), queries.content], dim=1),
        reference_points=torch.cat([noised.reference_points, queries.reference_points], dim=1),
        attention_mask=noised.attention_mask(queries.content.shape[1]),
    )
