"""Config of backbones from timm."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from deformdetr._files import http_error, locate_checkpoint, reading_tensors
from deformdetr.config._base import Config, Source
from deformdetr.nn import FeatureBackbone

# Set by other fields, or the path of a file.
_RESERVED = ("checkpoint_path", "feature_cls", "features_only", "out_indices", "pretrained")


class TimmConfig(Config):
    """A network from timm without its classifier; see `deformdetr.nn.FeatureBackbone`.

    Examples:
        >>> from deformdetr.config import DeformableDETRConfig
        >>> backbone = TimmConfig(name="convnext_tiny", frozen=("stem",))
        >>> DeformableDETRConfig(backbone=backbone).backbone.name
        'convnext_tiny'
    """

    kind: Literal["timm"] = "timm"
    name: str = Field(pattern=r"^\w[\w.]*$", description="Name of the network in `timm.list_models()`.")
    out_indices: tuple[int, ...] | None = Field(
        default=None, description="Feature maps to take, by timm's indices; null: the last ones that the model needs."
    )
    frozen: tuple[str, ...] = Field(
        default=(), description="Modules that are not trained, by timm's names, such as stem and stages.0."
    )
    weights: Source | None = Field(
        default=None,
        description="None: random; DEFAULT: timm's pretrained weights; otherwise a state dict of timm's: a path, a URL "
        "or a name on the Hugging Face Hub.",
    )
    options: dict[str, bool | int | float] = Field(
        default={},
        description="Keyword arguments of the network's constructor, such as strict_img_size: false, which lets Swin "
        "take images of any size.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        reserved = sorted(set(self.options) & set(_RESERVED))
        if reserved:
            raise ValueError(f"options cannot set {', '.join(reserved)}")
        return self

    def build(self, out_layers: tuple[int, ...]) -> FeatureBackbone:
        """Build the backbone, which returns the features of the given stages, of 1 to 4.

        Raises:
            ImportError: If timm is not installed.
            FileNotFoundError: If the file of `weights` does not exist.
            ConnectionError: If the weights cannot be downloaded. The message says where they are.
            ValueError: If timm does not know the network, `out_indices` differ in number from `out_layers`, or the
                weights cannot be read or do not fit.
        """
        timm = _import_timm(self.name)
        indices = self.out_indices or tuple(layer - 5 for layer in out_layers)
        if len(indices) != len(out_layers):
            raise ValueError(f"the model takes {len(out_layers)} feature maps, but out_indices are {indices}")
        options: dict[str, Any] = dict(self.options)
        state = None if self.weights in (None, "DEFAULT") else _read_weights(locate_checkpoint(self.weights))
        # The getter keeps the network's own names, and puts channels before height and width for every network.
        with _explaining_downloads(timm, self.name):
            body: Any = timm.create_model(
                self.name,
                pretrained=self.weights == "DEFAULT",
                features_only=True,
                feature_cls="getter",
                out_indices=indices,
                **options,
            )
        if state is not None:
            _load_weights(body, f"weights ({self.weights}) do not fit {self.name}", state)
        return FeatureBackbone(
            body,
            channels=body.feature_info.channels(),
            strides=body.feature_info.reduction(),
            frozen=[f"model.{name}" for name in self.frozen],
        )


def _import_timm(network: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"the backbone {network} needs timm: pip install 'deformdetr[timm]'") from error
    if not timm.is_model(network):
        raise ValueError(f"timm {timm.__version__} has no model {network!r}")
    module: ModuleType = timm
    return module


@contextmanager
def _explaining_downloads(timm: ModuleType, network: str) -> Iterator[None]:
    """Turn a failed download of pretrained weights into an error that says where they are."""
    try:
        yield
    except (OSError, http_error()) as error:
        published = timm.get_pretrained_cfg(network)
        where = f"https://huggingface.co/{published.hf_hub_id}" if published.hf_hub_id else published.url
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ConnectionError(
            f"timm's weights of {network} cannot be downloaded: {reason}; they are at {where}: download the file "
            "another way and set the backbone's weights to its path"
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    with reading_tensors(path):
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    return state


def _load_weights(body: nn.Module, refusal: str, state: dict[str, Tensor]) -> None:
    """Load the weights of the features; the classifier may have any size, or be absent."""
    prefix = "model."
    needed = [key.removeprefix(prefix) for key in body.state_dict()]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"{refusal}: {len(missing)} are missing, such as {missing[0]}")
    try:
        body.load_state_dict({prefix + key: state[key] for key in needed})
    except RuntimeError as error:
        reasons = "; ".join(shorten(line, 200) for line in str(error).splitlines()[1:4])
        raise ValueError(f"{refusal}: {reasons}") from error
