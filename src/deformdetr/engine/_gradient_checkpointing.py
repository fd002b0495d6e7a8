"""Trading time for memory: activations of layers are computed again in the backward pass."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from deformdetr.models import DETR, DeformableDETR


def enable_gradient_checkpointing(model: DeformableDETR | DETR) -> None:
    """Keep only the inputs of each encoder and decoder layer for the backward pass, which runs the layer again.

    Of a mask head, the same goes for its convolutions, which work on a few queries at a time. Parameters, their names
    and the results stay the same; dropout draws the same numbers both times.
    """
    for layer in (*model.encoder.layers, *model.decoder.layers):
        _checkpoint(layer)
    if model.mask_head is not None:
        _checkpoint(model.mask_head.convolutions)


def _checkpoint(layer: nn.Module) -> None:
    # Set on the instance: a wrapping module would change the names of the parameters.
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
