"""Whole models: ours and that of transformers, with the same random weights."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from benchmarks.cases import Direction, ModelSizes
from benchmarks.flops import count_flops
from benchmarks.matching import draw_targets
from benchmarks.problem import Contender, Outputs, Problem, UnavailableError
from deformdetr.config import DeformableDETRConfig, ResNetConfig, preset
from deformdetr.integrations import from_hugging_face, to_hugging_face
from deformdetr.kernels import LayerKernel, set_layer_kernels
from deformdetr.structures import Target

BASELINE = "hugging_face"
# Of predictions and gradients, through fifty convolutions and twelve layers of attention. Gradients of single layers
# move by up to two percent where rounding decides on which side of its kink a ReLU or a bilinear sample lies.
TOLERANCES: Mapping[Direction, float] = {"forward": 1e-3, "training_step": 0.1}
_LEARNING_RATE = 1e-5
_LARGEST_GRADIENT = 0.1


class Model(NamedTuple):
    """A model on a device, in evaluation mode.

    Attributes:
        run: Returns logits and boxes of the last layer for images and, with targets, the sum of all layers' losses.
        by_our_names: Renames its gradients to those of our model.
    """

    module: nn.Module
    run: Callable[..., tuple[Tensor, Tensor, Any]]
    by_our_names: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def build_ours(config: DeformableDETRConfig, device: str, seed: int) -> Model:
    """Build `DeformableDETR` with random weights."""
    module = _with_random_weights(config, seed).to(device).eval()
    criterion = config.build_criterion()

    def run(images: Tensor, targets: Sequence[Target] = ()) -> tuple[Tensor, Tensor, Any]:
        outputs = module(images)
        loss = criterion.total(criterion(outputs, targets)) if targets else None
        return outputs["pred_logits"], outputs["pred_boxes"], loss

    return Model(module, run)


def build_hugging_face(config: DeformableDETRConfig, device: str, seed: int) -> Model:
    """Build `DeformableDetrForObjectDetection` with the weights that our model has for the same seed.

    Its own ResNet freezes all of its stages, by a slip in a name; here it trains those that ours trains.

    Raises:
        UnavailableError: If transformers is not installed or has no such model.
    """
    theirs = _build_hugging_face(config)
    ours = _with_random_weights(config, seed)
    theirs.load_state_dict(to_hugging_face(ours.state_dict(), backbone="resnet"))
    trains = {name: torch.full_like(each, each.requires_grad) for name, each in ours.named_parameters()}
    trains = to_hugging_face(trains, backbone="resnet")
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(bool(trains[name].all()))
    module = theirs.to(device).eval()

    def run(images: Tensor, targets: Sequence[Target] = ()) -> tuple[Tensor, Tensor, Any]:
        labels = [{"boxes": each["boxes"], "class_labels": each["labels"]} for each in targets]
        mask = torch.ones_like(images[:, 0], dtype=torch.int64)
        outputs = module(images, pixel_mask=mask, labels=labels or None)
        return outputs.logits, outputs.pred_boxes, outputs.loss

    return Model(module, run, from_hugging_face)


MODELS: Mapping[str, Callable[..., Model]] = {"ours": build_ours, BASELINE: build_hugging_face}


def prepare_model(
    sizes: ModelSizes,
    direction: Direction,
    device: str,
    seed: int,
    models: Mapping[str, Callable[..., Model]] = MODELS,
) -> Problem:
    """Draw a batch; models, of some hundred megabytes each, are built when they are needed.

    They are compared with ours in float64 at a quarter of the image's height and width, in evaluation mode and without
    TF32: by their predictions, or by the loss and all gradients. The timed calls have the full size.
    """
    config: Any = preset(sizes.preset)
    config = config.replace(
        # Weighted as in transformers.
        criterion=config.criterion.replace(loss_class=1.0),
        num_queries=sizes.queries,
        num_encoder_layers=sizes.layers,
        num_decoder_layers=sizes.layers,
    )
    rng = torch.Generator(device).manual_seed(seed)
    images = torch.randn(1, 3, sizes.height, sizes.width, generator=rng, device=device)
    targets = draw_targets([sizes.targets], config.num_classes, rng)
    small = nn.functional.avg_pool2d(images, 4)

    @cache
    def expected() -> Outputs:
        model = build_ours(config, device, seed)
        model.module.double()
        doubled: list[Target] = [{"boxes": each["boxes"].double(), "labels": each["labels"]} for each in targets]
        return _results(model, small.double(), doubled, direction)

    def prepare(make: Callable[..., Model]) -> Contender:
        model = make(config, device, seed)

        def outputs() -> Outputs:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return _results(model, small, targets, direction)

        if direction == "forward":
            return Contender(partial(torch.no_grad()(model.run), images), outputs, expected)
        return Contender(partial(_training_step(model), images, targets), outputs, expected)

    def count() -> int:
        is_training = direction == "training_step"
        return sum(count_flops(config, sizes.height, sizes.width, backward=is_training).values())

    candidates = {name: partial(prepare, make) for name, make in models.items()}
    return Problem(candidates, BASELINE, TOLERANCES[direction], clock="wall", count_flops=count)


def prepare_layers(sizes: ModelSizes, direction: Direction, device: str, seed: int) -> Problem:
    """Build ours with all CPU kernels of layers, without one of them, and with none."""
    problem = prepare_model(sizes, direction, device, seed, {"ours": build_ours})
    all_kernels: tuple[LayerKernel, ...] = get_args(LayerKernel)
    kernels = {"ours": all_kernels, **{f"ours_without_{one}": (*(set(all_kernels) - {one}),) for one in all_kernels}}

    def build(chosen: Sequence[LayerKernel]) -> Contender:
        def with_kernels(call: Callable[[], Any]) -> Any:
            with set_layer_kernels(chosen):
                return call()

        contender = problem.candidates["ours"]()
        call, outputs = (partial(with_kernels, each) for each in (contender.call, contender.outputs))
        return contender._replace(call=call, outputs=outputs)

    candidates = {name: partial(build, chosen) for name, chosen in (kernels | {"ours_without_any": ()}).items()}
    return problem._replace(candidates=candidates, baseline="ours", clock="processor", count_flops=None)


def _training_step(model: Model) -> Callable[..., None]:
    """Return predictions with dropout, losses, gradients, clipping and a step of AdamW."""
    trained = [each for each in model.module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE)

    def step(images: Tensor, targets: Sequence[Target]) -> None:
        model.module.train()
        model.run(images, targets)[-1].backward()
        nn.utils.clip_grad_norm_(trained, _LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _results(model: Model, images: Tensor, targets: Sequence[Target], direction: Direction) -> Outputs:
    if direction == "forward":
        with torch.no_grad():
            logits, boxes, _ = model.run(images)
        # Sorted, because rounding may swap two-stage queries of similar scores.
        return {"logits": logits.sort(dim=1).values, "boxes": boxes.sort(dim=1).values}
    loss = model.run(images, targets)[-1]
    trained = {name: each for name, each in model.module.named_parameters() if each.requires_grad}
    found = zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True)
    gradients = {name: gradient for name, gradient in found if gradient is not None}
    return {"loss": loss.detach(), **model.by_our_names(gradients)}


def _with_random_weights(config: DeformableDETRConfig, seed: int) -> nn.Module:
    """Build a model in which every layer matters: as initialized, some weights are 0, and all queries sample alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = config.build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("backbone"):
                parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5)
    return model


def _build_hugging_face(config: DeformableDETRConfig) -> Any:
    if not isinstance(config.backbone, ResNetConfig) or config.backbone.dilation:
        raise UnavailableError("transformers' own backbone is a ResNet, and has no dilated last stage")
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError(f"cannot be imported: {error}") from error
    stages = ["stage2", "stage3", "stage4"][-min(3, config.num_feature_levels) :]
    theirs = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=stages),
        num_labels=config.num_classes,
        num_queries=config.num_queries,
        two_stage_num_proposals=config.num_queries,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        num_feature_levels=config.num_feature_levels,
        with_box_refine=config.with_box_refine,
        two_stage=config.two_stage,
        auxiliary_loss=True,
        class_cost=int(config.criterion.cost_class),
        # Its kernels would have to be downloaded.
        disable_custom_kernels=True,
    )
    model: Any = transformers.DeformableDetrForObjectDetection(theirs)
    if config.with_box_refine and not config.two_stage:
        # With box refinement, its config builds one head for the classes of all layers.
        model.class_embed = nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
    return model
