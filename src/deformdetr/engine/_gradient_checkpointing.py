"""Trading time for memory: activations of layers are computed again in the backward pass."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from deformdetr.models import DETR, DeformableDETR

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def enable_gradient_checkpointing(model: DeformableDETR | DETR) -> None:
    """Keep only the inputs of the backbone's blocks and of encoder and decoder layers for the backward pass.

    That pass runs each of them again, and the convolutions of a mask head, a few queries at a time. Parameters, their
    names and the results stay the same; dropout draws the same numbers both times. Of backbones, this is for those that
    have `blocks`, as ours do, or `set_grad_checkpointing`, as timm's do. One with batch norms stays as it is, because
    they would count every batch twice; frozen ones do not.
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
    # Set on the instance: a wrapping module would change the names of the parameters.
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
