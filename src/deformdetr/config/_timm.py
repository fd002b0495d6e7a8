"""Description of backbones from timm."""

from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from deformdetr._files import expand_path, reading_tensors
from deformdetr.config._base import Config
from deformdetr.nn import FeatureBackbone

# Decided by other fields, or able to name files.
_RESERVED = ("checkpoint_path", "feature_cls", "features_only", "out_indices", "pretrained")


class TimmConfig(Config):
    """A network of timm without its classifier; see `deformdetr.nn.FeatureBackbone`."""

    kind: Literal["timm"] = "timm"
    name: str = Field(pattern=r"^\w[\w.]*$", description="As `timm.list_models` has it.")
    out_indices: tuple[int, ...] | None = Field(
        default=None, description="Which of timm's feature maps are given; null: the last, as many as the model takes."
    )
    frozen: tuple[str, ...] = Field(
        default=(), description="Parts that do not train, by timm's names, such as stem and stages.0."
    )
    weights: str | None = Field(
        default=None,
        description="None: random; DEFAULT: timm's pretrained weights; else the path of a state dict in timm's names.",
    )
    options: dict[str, bool | int | float] = Field(
        default={},
        description="Numbers and switches for the network's constructor, such as strict_img_size: false, without which "
        "Swin takes images of one size.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        reserved = sorted(set(self.options) & set(_RESERVED))
        if reserved:
            raise ValueError(f"options cannot set {', '.join(reserved)}")
        return self

    def build(self, out_layers: tuple[int, ...]) -> FeatureBackbone:
        """Build the backbone with one output for each of some of four stages, of which 4 is the last.

        Raises:
            ImportError: If timm is not installed.
            FileNotFoundError: If `weights` names no file.
            ValueError: If timm does not know the network, the outputs are of another number, or the weights cannot be
                read or do not fit.
        """
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"the backbone {self.name} needs timm: pip install 'deformdetr[timm]'") from error

        if not timm.is_model(self.name):
            raise ValueError(f"timm {timm.__version__} has no model {self.name!r}")
        indices = self.out_indices or tuple(layer - 5 for layer in out_layers)
        if len(indices) != len(out_layers):
            raise ValueError(f"the model takes {len(out_layers)} feature maps, but out_indices are {indices}")
        options: dict[str, Any] = dict(self.options)
        state = None if self.weights in (None, "DEFAULT") else _read_weights(expand_path(self.weights))
        # The getter keeps the network's own names, and gives channels before height and width whatever the network.
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


def _read_weights(path: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    with reading_tensors(path):
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    return state


def _load_weights(body: nn.Module, refusal: str, state: dict[str, Tensor]) -> None:
    """Load what the features need; the classifier may be of any size, or absent."""
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
