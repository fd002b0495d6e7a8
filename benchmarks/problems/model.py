"""Whole models: ours and that of transformers, with the same random weights."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.cases import Direction, Dtype, ModelCase
from benchmarks.flops import build, count_flops
from benchmarks.problems.matching import draw_targets
from benchmarks.problems.problem import Contender, Problem, UnavailableError
from deformdetr.config import DeformableDETRConfig, ResNetConfig, preset
from deformdetr.integrations import from_hugging_face, to_hugging_face
from deformdetr.structures import Target

BASELINE = "hugging_face"
# Of predictions and gradients, through fifty convolutions and twelve layers of attention. Gradients of single layers
# move by up to two percent where rounding decides on which side of its kink a ReLU or a bilinear sample lies.
TOLERANCES: dict[Direction, float] = {"forward": 1e-3, "training_step": 0.1}
_LEARNING_RATE = 1e-5
_LARGEST_GRADIENT = 0.1
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
}


class Batch(NamedTuple):
    """Images without padding, and their targets."""

    images: Float[Tensor, "batch 3 height width"]
    targets: list[Target]

    def shrunk(self, dtype: torch.dtype) -> "Batch":
        """Return the batch at a quarter of its height and width, in another dtype."""
        images = nn.functional.avg_pool2d(self.images, 4).to(dtype)
        return Batch(images, [{"boxes": each["boxes"].to(dtype), "labels": each["labels"]} for each in self.targets])


class Ours:
    """`DeformableDETR` with random weights."""

    def __init__(self, config: DeformableDETRConfig, device: str, seed: int) -> None:
        self.module: nn.Module = _with_random_weights(config, seed).to(device).eval()
        self._criterion = config.build_criterion()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the predictions of the last layer."""
        outputs = self.module(batch.images)
        return {name: outputs[name] for name in ("pred_logits", "pred_boxes")}

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of all layers' losses."""
        return self._criterion.total(self._criterion(self.module(batch.images), batch.targets))

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients that a backward has left, by the names of our parameters."""
        return {name: each.grad for name, each in self.module.named_parameters() if each.grad is not None}


class HuggingFace:
    """`DeformableDetrForObjectDetection`, with the weights that `Ours` has for the same seed.

    Its own ResNet freezes all of its stages, by a slip in a name; here it trains those that ours trains.

    Raises:
        UnavailableError: If transformers is not installed or has no such model.
    """

    def __init__(self, config: DeformableDETRConfig, device: str, seed: int) -> None:
        try:
            import transformers
        except ImportError as error:
            raise UnavailableError(f"cannot be imported: {error}") from error
        ours = _with_random_weights(config, seed)
        theirs: Any = transformers.DeformableDetrForObjectDetection(_hugging_face_config(transformers, config))
        if config.with_box_refine and not config.two_stage:
            # With box refinement, its config builds one head for the classes of all layers.
            theirs.class_embed = nn.ModuleList(copy.deepcopy(head) for head in theirs.class_embed)
        theirs.load_state_dict(to_hugging_face(ours.state_dict(), backbone="resnet"))
        trains = {name: torch.full_like(each, each.requires_grad) for name, each in ours.named_parameters()}
        trains = to_hugging_face(trains, backbone="resnet")
        for name, parameter in theirs.named_parameters():
            parameter.requires_grad_(bool(trains[name].all()))
        self.module = theirs.to(device).eval()

    def _outputs(self, images: Tensor, **options: Any) -> Any:
        pixels = torch.ones(len(images), *images.shape[-2:], dtype=torch.int64, device=images.device)
        return self.module(images, pixel_mask=pixels, **options)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self._outputs(batch.images)
        return {"pred_logits": outputs.logits, "pred_boxes": outputs.pred_boxes}

    def loss(self, batch: Batch) -> Any:
        labels = [{"boxes": each["boxes"], "class_labels": each["labels"]} for each in batch.targets]
        return self._outputs(batch.images, labels=labels).loss

    def gradients(self) -> dict[str, Tensor]:
        gradients = {name: each.grad for name, each in self.module.named_parameters() if each.grad is not None}
        return from_hugging_face(gradients)


Model: TypeAlias = Ours | HuggingFace
MODELS: Mapping[str, Callable[..., Model]] = {"ours": Ours, BASELINE: HuggingFace}


def prepare_model(
    case: ModelCase,
    dtype: Dtype,
    direction: Direction,
    device: str,
    seed: int,
    models: Mapping[str, Callable[..., Model]] = MODELS,
) -> Problem:
    """Draw a batch; models, of some hundred megabytes each, are built when they are needed.

    They are compared with ours in float64 at a quarter of the image's height and width, in evaluation mode, without
    TF32 and autocast: by their predictions, or by the loss and all gradients. The timed calls have the full size;
    `bfloat16` means autocast.
    """
    config = describe(case)
    batch = draw_batch(case, config.num_classes, device, seed)

    @cache
    def expected() -> dict[str, Tensor]:
        model = Ours(config, device, seed)
        model.module.double()
        return _results(model, batch.shrunk(torch.float64), direction)

    def prepare(make: Callable[..., Model]) -> Contender:
        model = make(config, device, seed)
        autocast = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()

        def predict() -> None:
            with torch.no_grad(), autocast:
                model.predict(batch)

        def outputs() -> dict[str, Tensor]:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return _results(model, batch.shrunk(torch.float32), direction)

        return Contender(
            call=predict if direction == "forward" else _TrainingStep(model, batch, autocast),
            outputs=outputs,
            expected=expected,
            note="compared in float32, timed under autocast" if dtype == "bfloat16" else "",
        )

    def count() -> int:
        is_training = direction == "training_step"
        return sum(count_flops(build(config), case.batch, case.height, case.width, backward=is_training).values())

    return Problem(
        candidates={name: partial(prepare, make) for name, make in models.items()},
        baseline=BASELINE,
        tolerance=TOLERANCES[direction],
        clock="wall",
        count_flops=count,
    )


class _TrainingStep:
    """Predictions with dropout, losses, gradients, clipping and a step of AdamW."""

    def __init__(self, model: Model, batch: Batch, autocast: AbstractContextManager[object]) -> None:
        self._model = model
        self._batch = batch
        self._autocast = autocast
        self._optimizer: torch.optim.AdamW | None = None

    def __call__(self) -> None:
        module = self._model.module
        if self._optimizer is None:
            module.train()
            trained = [each for each in module.parameters() if each.requires_grad]
            self._optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE)
        with self._autocast:
            loss = self._model.loss(self._batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()
        self._optimizer.zero_grad()


def describe(case: ModelCase) -> DeformableDETRConfig:
    """Return the config of a case's preset; the losses are weighted as in transformers, with 1 for the class."""
    config = preset(f"deformable_detr_r50_{case.variant}".removesuffix("_multi_scale"))
    config = config.replace(criterion=config.criterion.replace(loss_class=1.0))
    if not case.tiny:
        return config
    # ResNet-18 has no dilated stages.
    name = "resnet50" if config.backbone.dilation else "resnet18"
    return config.replace(**_TINY, backbone=config.backbone.replace(name=name))


def draw_batch(case: ModelCase, classes: int, device: str, seed: int) -> Batch:
    """Draw normalized images of noise, and targets."""
    rng = torch.Generator(device).manual_seed(seed)
    images = torch.randn(case.batch, 3, case.height, case.width, generator=rng, device=device)
    return Batch(images, draw_targets([case.targets] * case.batch, classes, rng))


def _results(model: Model, batch: Batch, direction: Direction) -> dict[str, Tensor]:
    if direction == "forward":
        with torch.no_grad():
            outputs = model.predict(batch)
        # Sorted, because rounding may swap two-stage queries of similar scores.
        return {name: tensor.sort(dim=1).values for name, tensor in outputs.items()}
    loss = model.loss(batch)
    loss.backward()
    gradients = {name: tensor.clone() for name, tensor in model.gradients().items()}
    model.module.zero_grad()
    return {"loss": loss.detach()} | gradients


def _with_random_weights(config: DeformableDETRConfig, seed: int) -> nn.Module:
    """Build a model in which every layer matters: as initialized, some weights are 0, and all queries sample alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = config.build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("backbone"):
                parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5)
    return model


def _hugging_face_config(transformers: Any, config: DeformableDETRConfig) -> Any:
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
