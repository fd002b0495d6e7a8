"""Gradient checkpointing, which recomputes activations in the backward pass to save memory."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from deformdetr.models import DETR, DeformableDETR

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def enable_gradient_checkpointing(model: DeformableDETR | DETR) -> None:
    """Recompute the activations of backbone blocks and of encoder and decoder layers in the backward pass.

    Only their inputs are kept. The convolutions of a mask head are recomputed too, a few queries at a time. Results,
    parameters and their names stay the same, and dropout draws the same numbers both times.

    Backbones are supported if they have `blocks`, as those of this library, or `set_grad_checkpointing`, as those of
    timm. A backbone with batch normalization is left unchanged, because its running statistics would count every batch
    twice. Frozen batch normalization has none.

    Examples:
        >>> from deformdetr.config import preset
        >>> from deformdetr.engine import enable_gradient_checkpointing
        >>> model = preset("demo").build()
        >>> enable_gradient_checkpointing(model)
    """
    for layer in (*model.encoder.layers, *model.decoder.layers):
        _checkpoint(layer)
    if model.mask_head is not None:
        _checkpoint(model.mask_head.convolutions)
    if any(isinstance(part, _BATCH_NORMS) for part in model.backbone.modules()):
        return
    for block in getattr(model.backbone, "blocks", ()):
        _checkpoint(block)
    for part in model.backbone.modules():
        switch = getattr(part, "set_grad_checkpointing", None)
        if switch is not None:
            switch(enable=True)


def _checkpoint(layer: nn.Module) -> None:
    # Patched on the instance, because a wrapping module would change the names of parameters.
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
