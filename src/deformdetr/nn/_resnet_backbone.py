"""The ResNets of torchvision as backbones."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformdetr._files import cache_folder, download_once, locate_checkpoint
from deformdetr.kernels._layers import to_fast_format
from deformdetr.nn._group_norm import GroupNorm
from deformdetr.nn._residual import FrozenBatchNorm2d, ResidualBlock, convolve_and_normalize
from deformdetr.nn._stages import ascending_stages, run_stages, strides_of
from deformdetr.nn._weights import load_weights, read_weights

ResNetName: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
ResNetNorm: TypeAlias = Literal["frozen_batch", "batch", "group"]


class ResNetBackbone(nn.Module):
    """A ResNet of torchvision without its classifier.

    Args:
        name: Depth of the network.
        out_layers: Stages to return, ascending out of 1 to 4, whose strides are 4 to 32.
        norm: `frozen_batch` keeps BatchNorm's statistics and scales as loaded, for pretrained weights and small
            batches; `batch` trains it; `group` is GroupNorm of 32 groups, for training from scratch with small
            batches.
        dilation: Whether the last stage keeps stride 16 and dilates its convolutions instead (DC5).
        trainable_layers: Number of stages that train, counted from the last: 0 to 5, where 5 includes the stem. The
            others have no gradients and keep their norm's statistics.
        weights: None for random weights, "DEFAULT" to download torchvision's best ImageNet weights, or a state dict
            with torchvision's names, read with `weights_only=True`: a path, a URL or a name on the Hugging Face Hub, as
            for `deformdetr.integrations.locate_checkpoint`.
        convolutions: Constructor of the 3x3 convolutions, for each stage (1 to 4) where they are not `nn.Conv2d`, such
            as `DeformConv2d`. It takes the arguments of `nn.Conv2d`, and the layer holds its kernel as `weight`. The
            kernel is loaded like that of the plain layer; `weights` may lack its other parameters.

    Attributes:
        channels: Channels of each output.
        strides: Stride of each output, in pixels of the image.
        blocks: The residual blocks, each of which can be recomputed in the backward pass.

    Raises:
        ValueError: If a setting is unknown, the settings contradict each other, or the weights cannot be read or do
            not fit.
        FileNotFoundError: If there is no file `weights`.
        ConnectionError: If the weights cannot be downloaded. The message names the URL, and the file to save it as.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Examples:
        >>> import torch
        >>> backbone = ResNetBackbone("resnet18")
        >>> [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """

    def __init__(
        self,
        name: ResNetName = "resnet50",
        *,
        out_layers: Sequence[int] = (2, 3, 4),
        norm: ResNetNorm = "frozen_batch",
        dilation: bool = False,
        trainable_layers: int = 3,
        weights: str | Path | None = None,
        convolutions: Mapping[int, Callable[..., nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        _check_settings(name, trainable_layers, dilation=dilation, has_convolutions=bool(convolutions))
        self.out_layers = ascending_stages(out_layers)
        resnet = _build_resnet(name, norm, weights, convolutions or {}, dilation=dilation)
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(ResidualBlock(block) for block in stage))
            for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        )
        widest = resnet.fc.in_features
        self.channels = tuple(widest >> (4 - layer) for layer in self.out_layers)
        self.strides = strides_of(self.out_layers, dilation=dilation)
        stages = [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]
        self._frozen = tuple(stages[: 5 - trainable_layers])
        for stage in self._frozen:
            stage.requires_grad_(False)
        self.train()

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _channels _height _width"]]:
        """Return the outputs of the chosen stages, finest first.

        Args:
            images: RGB, normalized as the weights expect it.
        """
        x = convolve_and_normalize(to_fast_format(images), self.conv1, self.bn1)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return run_stages(stages, self.maxpool(self.relu(x)), self.out_layers)

    @property
    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks, in order."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    def train(self, mode: bool = True) -> "ResNetBackbone":  # noqa: FBT001, FBT002 - PyTorch's signature.
        """Switch modes; frozen stages stay in evaluation mode, so that their norms do not drift."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self


def _check_settings(name: str, trainable_layers: int, *, dilation: bool, has_convolutions: bool) -> None:
    if name not in ("resnet18", "resnet34", "resnet50", "resnet101"):
        raise ValueError(f"name must be resnet18, resnet34, resnet50 or resnet101, got {name!r}")
    if dilation and name in ("resnet18", "resnet34"):
        raise ValueError(f"{name} has no dilated form; dilation needs resnet50 or resnet101")
    if has_convolutions and name in ("resnet18", "resnet34"):
        raise ValueError(f"convolutions replace those of bottlenecks, which {name} does not have")
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers must lie in 0..5, got {trainable_layers}")


def _build_resnet(
    name: ResNetName,
    norm: ResNetNorm,
    weights: str | Path | None,
    convolutions: Mapping[int, Callable[..., nn.Module]],
    *,
    dilation: bool,
) -> Any:
    """Return torchvision's network with the chosen norms, convolutions and weights."""
    # Imported here, so that the rest of the package works where torchvision does not match torch.
    import torchvision

    state = None if weights is None else _read_weights(name, norm, weights)
    resnet = torchvision.models.get_model(
        name, weights=None, norm_layer=_norm_layer(norm), replace_stride_with_dilation=[False, False, dilation]
    )
    added = _replace_convolutions(resnet, convolutions)
    if state is not None:
        _load_weights(resnet, f"weights ({weights}) do not fit {name}", state, added)
    return resnet


def _norm_layer(norm: ResNetNorm) -> Callable[[int], nn.Module]:
    layers: dict[str, Callable[[int], nn.Module]] = {
        "frozen_batch": FrozenBatchNorm2d,
        "batch": nn.BatchNorm2d,
        "group": lambda channels: GroupNorm(32, channels),
    }
    if norm not in layers:
        raise ValueError(f"norm must be one of {', '.join(layers)}; got {norm!r}")
    return layers[norm]


def _replace_convolutions(resnet: nn.Module, convolutions: Mapping[int, Callable[..., nn.Module]]) -> Collection[str]:
    """Replace 3x3 convolutions, keep their kernels, and return the names of the state that the new ones add."""
    plain = resnet.state_dict().keys()
    for stage, build in convolutions.items():
        if stage not in (1, 2, 3, 4):
            raise ValueError(f"convolutions are for stages 1 to 4, got {stage}")
        for block in resnet.get_submodule(f"layer{stage}").children():
            old: Any = block.get_submodule("conv2")
            new = build(
                old.in_channels,
                old.out_channels,
                old.kernel_size,
                stride=old.stride,
                padding=old.padding,
                dilation=old.dilation,
                groups=old.groups,
                bias=False,
            )
            with torch.no_grad():
                new.get_parameter("weight").copy_(old.weight)
            block.conv2 = new
    return resnet.state_dict().keys() - plain


def _read_weights(name: str, norm: ResNetNorm, weights: str | Path) -> dict[str, Tensor]:
    if norm == "group":
        raise ValueError(f"weights ({weights}) are those of a batch-norm network and do not fit norm='group'")
    return read_weights(_default_weights(name) if weights == "DEFAULT" else locate_checkpoint(weights))


def _load_weights(resnet: nn.Module, refusal: str, state: dict[str, Tensor], optional: Collection[str]) -> None:
    # The classifier is not part of the backbone, and may have any number of classes, or be absent.
    state = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    own = resnet.state_dict()
    state |= {key: own[key] for key in own if key.startswith("fc.") or (key in optional and key not in state)}
    load_weights(resnet, state, refusal)


def _default_weights(name: str) -> Path:
    """Return the file of torchvision's best weights, at the place where torchvision itself looks for it."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(name).DEFAULT.url
    return download_once(url, cache_folder() / url.rpartition("/")[2])
