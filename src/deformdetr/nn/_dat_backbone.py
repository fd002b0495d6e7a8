"""The backbones of DAT."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._files import locate_checkpoint
from deformdetr._grids import padding_to_multiple
from deformdetr.kernels._layers import to_fast_format
from deformdetr.nn._dat_weights import translate_dat_weights
from deformdetr.nn._deformable_attention import DeformableAttention2d
from deformdetr.nn._feed_forward import FeedForward
from deformdetr.nn._stages import ascending_stages, run_stages, strides_of
from deformdetr.nn._weights import load_weights, read_weights
from deformdetr.nn._window_attention import WindowAttention

DATName: TypeAlias = Literal["dat_tiny", "dat_small", "dat_base"]


class _Size(NamedTuple):
    """What differs between the published networks."""

    channels: int
    """Of the first stage; they double from stage to stage."""
    depth: int
    """Blocks of the third stage; the others have two."""


_SIZES = {"dat_tiny": _Size(96, 6), "dat_small": _Size(96, 18), "dat_base": _Size(128, 18)}
_CHANNELS_PER_HEAD = 32
_CHANNELS_PER_GROUP = 128
# Sides of the offset networks' kernels, by stage.
_KERNEL_SIZES = {3: 5, 4: 3}


class DATBackbone(nn.Module):
    """A Vision Transformer with Deformable Attention (DAT) as in CVPR 2022, without its classifier.

    Blocks come in pairs. The first attends within windows. The second attends within shifted windows in stages 1 and
    2, and is a `DeformableAttention2d` in stages 3 and 4. Maps are padded at the bottom and on the right where their
    size is not divisible, so that images may have any size, and sizes of features are rounded up. DAT++ is another
    network, whose weights do not fit.

    Args:
        name: `dat_tiny`, `dat_small` or `dat_base`: DAT-T, DAT-S and DAT-B of the paper.
        out_layers: Stages to return, ascending out of 1 to 4, whose strides are 4 to 32.
        image_size: Side of the images, in pixels, that the tables of relative positions are made for; a multiple of 32.
            The tables stretch with images of other sizes. It must be that of the weights: 224, or 384 for one DAT-B.
        window_size: Side of windows, in pixels of the feature map: 7 for the weights of 224 pixels, 12 for 384.
        drop_path: Probability of leaving out a branch of the last block in training, which grows linearly from 0 for
            the first block. Published training on ImageNet uses 0.2, 0.3 and 0.5 for the three networks.
        trainable_layers: Number of stages that train, counted from the last: 0 to 5, where 5 includes the stem.
        weights: None for random weights, or a checkpoint of the original implementation, read with
            `weights_only=True`: a path, a URL or a name on the Hugging Face Hub, as for
            `deformdetr.integrations.locate_checkpoint`.

    Attributes:
        channels: Channels of each output.
        strides: Stride of each output, in pixels of the image.
        blocks: The transformer blocks, each of which can be recomputed in the backward pass.

    Raises:
        ValueError: If a setting is unknown or out of range, or the weights cannot be read or do not fit.
        FileNotFoundError: If there is no file `weights`.
        ConnectionError: If the weights cannot be downloaded. The message names the URL, and the file to save it as.

    References:
        Xia et al., "Vision Transformer with Deformable Attention", CVPR 2022, table 1.

    Examples:
        >>> import torch
        >>> backbone = DATBackbone("dat_tiny").eval()
        >>> [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """

    def __init__(
        self,
        name: DATName = "dat_tiny",
        *,
        out_layers: Sequence[int] = (2, 3, 4),
        image_size: int = 224,
        window_size: int = 7,
        drop_path: float = 0.0,
        trainable_layers: int = 5,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        _check_settings(name, image_size, window_size, drop_path, trainable_layers)
        self.out_layers = ascending_stages(out_layers)
        state = None
        if weights is not None:
            state = translate_dat_weights(read_weights(locate_checkpoint(weights), entry="model"))
        size = _SIZES[name]
        depths = (2, 2, size.depth, 2)
        last = sum(depths) - 1
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths, start=1):
            channels, first = size.channels << (stage - 1), sum(depths[: stage - 1])
            blocks = (
                _Block(
                    channels,
                    _build_attention(channels, stage, index, image_size, window_size),
                    drop_path=drop_path * (first + index) / last,
                )
                for index in range(depth)
            )
            self.stages.append(_Stage(_Downsample(channels, is_stem=stage == 1), blocks))
        self.channels = tuple(size.channels << (layer - 1) for layer in self.out_layers)
        self.strides = strides_of(self.out_layers, dilation=False)
        if state is not None:
            load_weights(self, state, f"weights ({weights}) do not fit {name}")
        self._frozen = (self.stages[0].downsample, *self.stages)[: 5 - trainable_layers]
        for part in self._frozen:
            part.requires_grad_(False)
        self.train()

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _channels _height _width"]]:
        """Return the outputs of the chosen stages, finest first.

        Args:
            images: RGB, normalized as the weights expect it.
        """
        return run_stages(self.stages, to_fast_format(images), self.out_layers)

    @property
    def blocks(self) -> list[nn.Module]:
        """Return the transformer blocks, in order."""
        return [block for stage in self.stages for block in stage.get_submodule("blocks").children()]

    def train(self, mode: bool = True) -> "DATBackbone":  # noqa: FBT001, FBT002 - PyTorch's signature.
        """Switch modes; frozen stages stay in evaluation mode, so that they leave out no branches."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self


class _Stage(nn.Module):
    """A downsampling and the blocks after it."""

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class _Downsample(nn.Module):
    """A convolution of patches, and a norm. Maps are padded with zeros to whole patches."""

    def __init__(self, channels: int, *, is_stem: bool) -> None:
        super().__init__()
        self.patch_size = 4 if is_stem else 2
        d_in = 3 if is_stem else channels // 2
        self.conv = nn.Conv2d(d_in, channels, self.patch_size, stride=self.patch_size, bias=is_stem)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = (padding_to_multiple(size, self.patch_size) for size in x.shape[2:])
        return _normalize(self.norm, self.conv(F.pad(x, (0, right, 0, bottom))))


class _Block(nn.Module):
    """Attention and a perceptron with norms before them, either of which may be left out in training."""

    def __init__(self, channels: int, attention: nn.Module, *, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = attention
        self.norm2 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, 4 * channels, dropout=0.0, activation=nn.GELU())
        self.drop_path = nn.Dropout(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self.attention(_normalize(self.norm1, x)))
        hidden = self.feed_forward(self.norm2(x.permute(0, 2, 3, 1)))
        return x + self._drop(hidden.permute(0, 3, 1, 2))

    def _drop(self, branch: Tensor) -> Tensor:
        """Return the branch, in training with a factor for each image: 0 or, on average, 1."""
        return branch * self.drop_path(branch.new_ones(branch.shape[0], 1, 1, 1)) if self.training else branch


def _normalize(norm: nn.Module, x: Tensor) -> Tensor:
    normalized: Tensor = norm(x.permute(0, 2, 3, 1))
    return normalized.permute(0, 3, 1, 2)


def _build_attention(channels: int, stage: int, index: int, image_size: int, window_size: int) -> nn.Module:
    heads = channels // _CHANNELS_PER_HEAD
    if index % 2 == 0:
        return WindowAttention(channels, heads, window_size=window_size)
    if stage <= 2:
        # As in the original, half a window rounded up; Swin rounds down.
        return WindowAttention(channels, heads, window_size=window_size, shift=(window_size + 1) // 2)
    return DeformableAttention2d(
        channels,
        heads,
        channels // _CHANNELS_PER_GROUP,
        map_size=image_size // (2 << stage),
        kernel_size=_KERNEL_SIZES[stage],
    )


def _check_settings(name: str, image_size: int, window_size: int, drop_path: float, trainable_layers: int) -> None:
    if name not in _SIZES:
        raise ValueError(f"name must be one of {', '.join(_SIZES)}; got {name!r}")
    if image_size < 32 or image_size % 32:
        raise ValueError(f"image_size must be a positive multiple of 32, got {image_size}")
    if window_size < 2:
        raise ValueError(f"window_size must be at least 2, got {window_size}")
    if not 0 <= drop_path <= 1:
        raise ValueError(f"drop_path must lie in 0..1, got {drop_path}")
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers must lie in 0..5, got {trainable_layers}")
