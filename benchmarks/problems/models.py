"""Our model and that of transformers, behind the same three methods and with the same random weights."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.cases import ModelCase, Variant
from benchmarks.problems.contender import UnavailableError
from benchmarks.problems.targets import draw_targets
from deformdetr import DeformableDETRConfig
from deformdetr.config import FocalCriterionConfig, ResNetConfig
from deformdetr.integrations import from_hugging_face, to_hugging_face
from deformdetr.structures import Target

_VARIANTS: Mapping[Variant, dict[str, Any]] = {
    "single_scale": {"num_feature_levels": 1},
    "single_scale_dc5": {"num_feature_levels": 1, "backbone": ResNetConfig(dilation=True)},
    "multi_scale": {},
    "refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}
_TINY: dict[str, Any] = {
    "num_classes": 7,
    "num_queries": 20,
    "d_model": 64,
    "n_heads": 4,
    "d_ffn": 96,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "enc_n_points": 2,
    "dec_n_points": 3,
    "backbone": ResNetConfig(name="resnet18"),
}


class Batch(NamedTuple):
    """Images without padding, and what is on them."""

    images: Float[Tensor, "batch 3 height width"]
    targets: list[Target]

    def shrunk(self, dtype: torch.dtype) -> "Batch":
        """Give a quarter of the sides, in another dtype."""
        images = nn.functional.avg_pool2d(self.images, 4).to(dtype)
        return Batch(images, [{"boxes": each["boxes"].to(dtype), "labels": each["labels"]} for each in self.targets])


class Model(ABC):
    """A detector that predicts and learns; gradients and predictions have our names."""

    module: nn.Module

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Give the predictions of the last layer."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Give the sum of all layers' losses."""

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Give the gradients that a backward left."""


class Ours(Model):
    """`DeformableDETR`, with weights that follow from the seed."""

    def __init__(self, config: DeformableDETRConfig, device: str, seed: int) -> None:
        self.module = _randomised(config, seed).to(device).eval()
        self._criterion = config.build_criterion()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.module(batch.images)
        return {name: outputs[name] for name in ("pred_logits", "pred_boxes")}

    def loss(self, batch: Batch) -> Tensor:
        return self._criterion.total(self._criterion(self.module(batch.images), batch.targets))

    def gradients(self) -> dict[str, Tensor]:
        return _gradients(self.module)


class HuggingFace(Model):
    """`DeformableDetrForObjectDetection`, with the weights that `Ours` has for the seed.

    Its own ResNet freezes itself whole, by a slip in a name; here the stages train that do in ours.

    Raises:
        UnavailableError: If transformers is not installed, or has no such model.
    """

    def __init__(self, config: DeformableDETRConfig, device: str, seed: int) -> None:
        try:
            import transformers
        except ImportError as error:
            raise UnavailableError(f"cannot be imported: {error}") from error
        ours = _randomised(config, seed)
        theirs: Any = transformers.DeformableDetrForObjectDetection(_their_config(transformers, config))
        if config.with_box_refine and not config.two_stage:
            # Built from a config that refines boxes, it has one head for the classes of all layers.
            theirs.class_embed = nn.ModuleList(copy.deepcopy(head) for head in theirs.class_embed)
        theirs.load_state_dict(to_hugging_face(ours.state_dict(), backbone="resnet"))
        trains = {name: torch.full_like(each, each.requires_grad) for name, each in ours.named_parameters()}
        trains = to_hugging_face(trains, backbone="resnet")
        for name, parameter in theirs.named_parameters():
            parameter.requires_grad_(bool(trains[name].all()))
        self.module = theirs.to(device).eval()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.module(batch.images, pixel_mask=_all_pixels(batch.images))
        return {"pred_logits": outputs.logits, "pred_boxes": outputs.pred_boxes}

    def loss(self, batch: Batch) -> Tensor:
        labels = [{"boxes": each["boxes"], "class_labels": each["labels"]} for each in batch.targets]
        loss: Tensor = self.module(batch.images, pixel_mask=_all_pixels(batch.images), labels=labels).loss
        return loss

    def gradients(self) -> dict[str, Tensor]:
        return from_hugging_face(_gradients(self.module))


def describe(case: ModelCase) -> DeformableDETRConfig:
    """Describe a case's model; the losses' weights are those of transformers, which has none for the class."""
    tiny = _TINY if case.tiny else {}
    return DeformableDETRConfig(criterion=FocalCriterionConfig(loss_class=1.0), **tiny | _VARIANTS[case.variant])


def draw_batch(case: ModelCase, classes: int, device: str, seed: int) -> Batch:
    """Draw normalised images of noise, and targets."""
    rng = torch.Generator(device).manual_seed(seed)
    images = torch.randn(case.batch, 3, case.height, case.width, generator=rng, device=device)
    return Batch(images, draw_targets([case.targets] * case.batch, classes, rng))


def _randomised(config: DeformableDETRConfig, seed: int) -> nn.Module:
    """Build a model whose every layer matters: as built, some weights are 0, and all queries sample alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = config.build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("backbone"):
                parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5)
    return model


def _their_config(transformers: Any, config: DeformableDETRConfig) -> Any:
    backbone = config.backbone
    if not isinstance(backbone, ResNetConfig) or backbone.dilation:
        raise UnavailableError("transformers' own ResNet has no dilated last stage")
    stages = ["stage2", "stage3", "stage4"][-min(3, config.num_feature_levels) :]
    if backbone.name == "resnet18":
        sizes = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    else:
        sizes = {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}
    return transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(**sizes, out_features=stages),
        num_labels=config.num_classes,
        num_queries=config.num_queries,
        two_stage_num_proposals=config.num_queries,
        num_feature_levels=config.num_feature_levels,
        d_model=config.d_model,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.n_heads,
        decoder_attention_heads=config.n_heads,
        encoder_ffn_dim=config.d_ffn,
        decoder_ffn_dim=config.d_ffn,
        encoder_n_points=config.enc_n_points,
        decoder_n_points=config.dec_n_points,
        dropout=config.dropout,
        with_box_refine=config.with_box_refine,
        two_stage=config.two_stage,
        auxiliary_loss=True,
        class_cost=int(config.criterion.cost_class),
        bbox_cost=int(config.criterion.cost_bbox),
        giou_cost=int(config.criterion.cost_giou),
        bbox_loss_coefficient=int(config.criterion.loss_bbox),
        giou_loss_coefficient=int(config.criterion.loss_giou),
        focal_alpha=config.criterion.focal_alpha,
        # Its kernels would have to be downloaded.
        disable_custom_kernels=True,
    )


def _all_pixels(images: Tensor) -> Tensor:
    return torch.ones(len(images), *images.shape[-2:], dtype=torch.int64, device=images.device)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
