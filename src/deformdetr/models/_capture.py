"""What the layers of a model sample and predict in a forward pass."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformdetr.nn import DecoderOutput, DeformableDecoder, MSDeformAttn, ProposalQueries, Queries


class SampledLayer(NamedTuple):
    """What one deformable attention layer sampled.

    Locations and references are fractions of each level, padding included. `Capture.in_image` gives fractions of an
    image. If levels differ in their number of points, one axis holds the points of all levels.
    """

    sampling_locations: Float[Tensor, "batch queries heads *levels_and_points 2"]
    """(x, y)."""
    attention_weights: Float[Tensor, "batch queries heads *levels_and_points"]
    """They sum to 1 over levels and points."""
    reference_points: Float[Tensor, "batch queries levels coordinates"]
    """(x, y) or (cx, cy, w, h)."""


@dataclass
class Capture:
    """What the layers of a model sampled and predicted in its last forward pass. Tensors have no gradient.

    Attributes:
        layers: What each deformable attention layer sampled, by its name in the model, in the order of the calls.
        references: References of the queries of the first decoder layer, (batch, queries, 2 or 4), as fractions of the
            image: learned points or boxes, or the selected proposals of a two-stage model.
        boxes: Boxes after each decoder layer, (batch, queries, 4), cxcywh as fractions of the image.
        proposal_boxes: Boxes that the encoder of a two-stage model proposes, (batch, proposals, 4), cxcywh as fractions
            of the image: one for every pixel, or the selected ones (DINO).
        proposal_scores: Their scores in [0, 1], (batch, proposals).
        valid_ratios: Fraction of each level's width and height that is not padding, (batch, levels, 2).
    """

    layers: dict[str, SampledLayer] = field(default_factory=dict)
    references: Tensor | None = None
    boxes: list[Tensor] = field(default_factory=list)
    proposal_boxes: Tensor | None = None
    proposal_scores: Tensor | None = None
    valid_ratios: Tensor | None = None

    def clear(self) -> None:
        """Forget everything."""
        self.layers.clear()
        self.boxes = []
        self.references = self.proposal_boxes = self.proposal_scores = self.valid_ratios = None

    def in_image(self, name: str, image: int, query: int) -> SampledLayer:
        """Return what a layer sampled for one query of one image, as fractions of the image without padding.

        Args:
            name: Name of the layer.
            image: Index in the batch.
            query: Index of the query; of a pixel, for layers of the encoder.

        Returns:
            Locations (heads, levels, points, 2), weights (heads, levels, points), and the reference (2 or 4) on the
            first level.

        Raises:
            KeyError: If there is no such layer.
            ValueError: If levels differ in their number of points.
        """
        if name not in self.layers:
            raise KeyError(f"no layer {name!r} has sampled anything; there are {', '.join(self.layers) or 'none'}")
        layer = self.layers[name]
        locations = layer.sampling_locations[image, query]
        if locations.ndim != 4:
            raise ValueError(f"the levels of {name} differ in their number of points")
        reference = layer.reference_points[image if len(layer.reference_points) > 1 else 0, query, 0]
        if self.valid_ratios is not None:
            ratios = self.valid_ratios[image]
            locations = locations / ratios[:, None]
            reference = reference / ratios[0].repeat(len(reference) // 2)
        return SampledLayer(locations, layer.attention_weights[image, query], reference)


@contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """Collect what deformable attention layers sample and what decoder layers predict, without changing the model.

    Hooks on the layers compute sampling locations and attention weights again, and are removed at the end. Each forward
    pass replaces what the one before left. Models that `torch.compile` has compiled may skip hooks; capture before
    compiling.

    Raises:
        ValueError: If the model has no `MSDeformAttn`.

    Examples:
        >>> import torch
        >>> import deformdetr
        >>> from deformdetr.models import capture
        >>> model = deformdetr.preset("demo").build().eval()
        >>> with capture(model) as captured, torch.no_grad():
        ...     outputs = model([torch.rand(3, 64, 96)])
        >>> list(captured.layers)[-1]
        'decoder.layers.1.cross_attn'
        >>> captured.layers["decoder.layers.1.cross_attn"].sampling_locations.shape
        torch.Size([1, 30, 4, 3, 4, 2])
        >>> len(captured.boxes)
        2
    """
    captured = Capture()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MSDeformAttn)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no deformable attention layer")
    with ExitStack() as hooks:
        handles = [model.register_forward_pre_hook(lambda *_: captured.clear())]
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(_sampling_hook(name, captured), with_kwargs=True))
        for module in model.modules():
            if isinstance(module, DeformableDecoder):
                handles.append(module.register_forward_hook(_decoder_hook(captured), with_kwargs=True))
            elif isinstance(module, ProposalQueries):
                handles.append(module.register_forward_hook(_queries_hook(captured)))
        for handle in handles:
            hooks.callback(handle.remove)
        yield captured


def _sampling_hook(name: str, captured: Capture) -> Any:
    def record(layer: MSDeformAttn, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = inspect.signature(layer.forward).bind(*arguments, **named).arguments
        query, references = given["query"], given["reference_points"]
        with torch.no_grad():
            locations, weights = layer.sampling_locations_and_weights(query, references, given["input_spatial_shapes"])
        captured.layers[name] = SampledLayer(locations, weights, references.detach())

    return record


def _decoder_hook(captured: Capture) -> Any:
    def record(
        decoder: DeformableDecoder, arguments: tuple[Any, ...], named: dict[str, Any], output: DecoderOutput
    ) -> None:
        given = inspect.signature(decoder.forward).bind(*arguments, **named).arguments
        captured.references = given["reference_points"].detach()
        captured.valid_ratios = given["valid_ratios"].detach()
        captured.boxes = [boxes.detach() for boxes in output.boxes]

    return record


def _queries_hook(captured: Capture) -> Any:
    def record(module: nn.Module, arguments: tuple[Any, ...], output: Queries) -> None:
        found = output.predictions
        if "enc_outputs" in found:
            # The other channels are not trained.
            proposals, logits = found["enc_outputs"], found["enc_outputs"]["pred_logits"][..., 0]
        else:
            proposals, logits = found["interm_outputs"], found["interm_outputs"]["pred_logits"].amax(-1)
        captured.proposal_boxes = proposals["pred_boxes"].detach()
        captured.proposal_scores = logits.detach().sigmoid()

    return record
