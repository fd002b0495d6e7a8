"""Any network that returns feature maps, as a backbone."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

# A multiple of the strides and windows that networks have.
_PROBE = 256


class FeatureBackbone(nn.Module):
    """Wrap a network that returns feature maps, and give their channels and strides to a detector.

    Args:
        body: Maps images (batch, 3, height, width) to a list, a tuple or a mapping of feature maps (batch, channels,
            height, width).
        outputs: Indices or keys of the feature maps to return, finest first; None for all, in the order of `body`.
        channels: Channels of each output. If None, channels and strides are found by a dry run on an image of
            256 x 256 pixels in evaluation mode.
        strides: Stride of each output, in pixels of the image. Required with `channels`, and only then.
        frozen: Names of submodules of `body`, as for `get_submodule`, that do not train. They have no gradients and
            stay in evaluation mode, so that their norms do not drift.

    Attributes:
        channels: Channels of each output.
        strides: Stride of each output, in pixels of the image.

    Raises:
        ValueError: If a frozen part does not exist, only one of `channels` and `strides` is given, they differ in
            length, or the dry run returns maps whose sizes do not divide that of the image.

    Examples:
        >>> from torchvision.models import resnet18
        >>> from torchvision.models.feature_extraction import create_feature_extractor
        >>> body = create_feature_extractor(resnet18(), ["layer3", "layer4"])
        >>> backbone = FeatureBackbone(body)
        >>> backbone.channels, backbone.strides
        ((256, 512), (16, 32))
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        outputs: Sequence[int | str] | None = None,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.body = body
        self.outputs = None if outputs is None else tuple(outputs)
        if (channels is None) != (strides is None):
            raise ValueError(f"channels ({channels}) and strides ({strides}) must be given both or not at all")
        if channels is None or strides is None:
            channels, strides = self._probe()
        if not channels or len(channels) != len(strides):
            raise ValueError(f"need one stride for each output, got channels {channels} and strides {strides}")
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        parts = dict(body.named_modules())
        unknown = [name for name in frozen if not name or name not in parts]
        if unknown:
            raise ValueError(
                f"there is no part {unknown[0]!r} to freeze; there are {', '.join(dict(body.named_children()))}"
            )
        self._frozen = tuple(parts[name] for name in frozen)
        for part in self._frozen:
            part.requires_grad_(False).eval()

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _channels _height _width"]]:
        """Return the chosen feature maps, finest first.

        Args:
            images: RGB, normalized as the weights of `body` expect it.
        """
        found = self.body(images)
        if self.outputs is not None:
            return [found[output] for output in self.outputs]
        return list(found.values() if isinstance(found, Mapping) else found)

    def train(self, mode: bool = True) -> "FeatureBackbone":  # noqa: FBT001, FBT002 - PyTorch's signature.
        """Switch modes; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    @torch.no_grad()
    def _probe(self) -> tuple[list[int], list[int]]:
        """Return channels and strides from a dry run, which leaves the mode of every part unchanged."""
        modes = [(part, part.training) for part in self.body.modules()]
        self.body.eval()
        like = next(self.body.parameters(), torch.empty(0))
        features = self.forward(like.new_zeros(1, 3, _PROBE, _PROBE))
        for part, training in modes:
            part.training = training
        for index, feature in enumerate(features):
            if feature.ndim != 4 or _PROBE % feature.shape[2] or feature.shape[2] != feature.shape[3]:
                raise ValueError(
                    f"output {index} of an image of {_PROBE} x {_PROBE} pixels has shape {tuple(feature.shape)}, which "
                    "no stride gives; give channels and strides"
                )
        return [feature.shape[1] for feature in features], [_PROBE // feature.shape[2] for feature in features]
