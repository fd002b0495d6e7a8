"""The predictions of a model, gathered from those of its decoder layers."""

from collections.abc import Sequence

from deformdetr.nn import NoisedQueries
from deformdetr.structures import DenoisingPredictions, LayerPredictions, Predictions


def gather_layers(
    layers: Sequence[LayerPredictions], *, aux_loss: bool, noised: NoisedQueries | None = None
) -> Predictions:
    """Return the predictions of the last decoder layer and, with `aux_loss`, those of the others as `aux_outputs`.

    Args:
        layers: Predictions of every decoder layer, first layer first.
        aux_loss: Whether to return the predictions of all layers.
        noised: Denoising queries that precede the matched ones; their predictions become `dn_outputs`.
    """
    if noised is not None:
        count = noised.content.shape[1]
        restored = [_slice_queries(layer, slice(count)) for layer in layers]
        layers = [_slice_queries(layer, slice(count, None)) for layer in layers]
    outputs: Predictions = {"pred_logits": layers[-1]["pred_logits"], "pred_boxes": layers[-1]["pred_boxes"]}
    if aux_loss:
        outputs["aux_outputs"] = list(layers[:-1])
    if noised is not None:
        outputs["dn_outputs"] = _denoising_outputs(restored, noised, aux_loss=aux_loss)
    return outputs


def _denoising_outputs(
    layers: list[LayerPredictions], noised: NoisedQueries, *, aux_loss: bool
) -> DenoisingPredictions:
    outputs: DenoisingPredictions = {
        "pred_logits": layers[-1]["pred_logits"],
        "pred_boxes": layers[-1]["pred_boxes"],
        "num_groups": noised.num_groups,
        "has_negatives": noised.has_negatives,
    }
    if aux_loss:
        outputs["aux_outputs"] = layers[:-1]
    return outputs


def _slice_queries(layer: LayerPredictions, queries: slice) -> LayerPredictions:
    return {"pred_logits": layer["pred_logits"][:, queries], "pred_boxes": layer["pred_boxes"][:, queries]}
