"""Whole models against values of the original implementation, forward, losses and gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from checkpoints import PRESET_OF_GOLDEN, golden_checkpoint
from deformdetr import DETR, DeformableDETR, DeformableDETRConfig, DETRConfig, preset
from deformdetr.integrations import load_checkpoint, to_original
from deformdetr.structures import Predictions
from goldens import Golden, load_golden, unit
from targets import golden_targets

# Of float32 against float64. Observed are up to 5e-6 and 9e-7.
LOGITS, BOXES = {"rtol": 0, "atol": 5e-5}, {"rtol": 0, "atol": 5e-6}
LAYER = ("pred_logits", "pred_boxes")
FAST = ("multi_scale", "two_stage", "detr_r50")


class Case(NamedTuple):
    name: str
    golden: Golden
    config: DeformableDETRConfig | DETRConfig
    model: DeformableDETR | DETR
    images: list[Tensor]
    outputs: Predictions

    @property
    def is_two_stage(self) -> bool:
        return isinstance(self.config, DeformableDETRConfig) and self.config.two_stage

    def value(self, key: str) -> Tensor:
        return torch.from_numpy(self.golden.arrays[key])

    def targets(self, dtype: torch.dtype) -> list[dict[str, Tensor]]:
        targets = golden_targets(self.name, self.golden.facts["targets_per_image"])
        return [target | {"boxes": target["boxes"].to(dtype)} for target in targets]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRESET_OF_GOLDEN],
)
def case(request: pytest.FixtureRequest) -> Case:
    """Build one golden's model in evaluation mode and run it once, in float32."""
    name = request.param
    golden = load_golden(name)
    config = preset(PRESET_OF_GOLDEN[name])
    model = config.build().eval()
    load_checkpoint(model, golden_checkpoint(golden))
    images = [unit(f"{name}.image{i}", (3, *size)).float() for i, size in enumerate(golden.facts["image_sizes_hw"])]
    with torch.no_grad():
        outputs = model(images)
    case = Case(name, golden, config, model, images, outputs)
    return case._replace(outputs=in_order_of_the_golden(case)) if case.is_two_stage else case


def in_order_of_the_golden(case: Case) -> Predictions:
    """Order queries as the golden does: some of its proposals score so alike (to 7e-7) that rounding swaps them."""
    ours = case.outputs["enc_outputs"]["pred_logits"][..., 0].topk(300, dim=1).indices
    theirs = case.value("enc_pred_logits_class0").topk(300, dim=1).indices
    # Both list the pixels of the queries: sort ours, then undo the sorting of theirs.
    order = ours.argsort(dim=1).gather(1, theirs.argsort(dim=1).argsort(dim=1))
    assert ours.gather(1, order).tolist() == theirs.tolist()

    def reorder(layer):
        return {name: layer[name].gather(1, order[..., None].expand_as(layer[name])) for name in LAYER}

    return {
        **reorder(case.outputs),
        "aux_outputs": [reorder(layer) for layer in case.outputs["aux_outputs"]],
        "enc_outputs": case.outputs["enc_outputs"],
    }


def test_state_dict_has_the_names_and_shapes_of_the_original(case):
    shapes = {name: list(tensor.shape) for name, tensor in to_original(case.model.state_dict()).items()}
    assert shapes == case.golden.facts["state_dict_shapes"]
    assert sum(parameter.numel() for parameter in case.model.parameters()) == case.golden.facts["parameters"]


def test_first_and_last_layer_predict_as_the_original(case):
    for prefix, outputs in (("", case.outputs), ("aux0_", case.outputs["aux_outputs"][0])):
        torch.testing.assert_close(outputs["pred_logits"], case.value(f"{prefix}pred_logits"), **LOGITS)
        torch.testing.assert_close(outputs["pred_boxes"], case.value(f"{prefix}pred_boxes"), **BOXES)
    assert len(case.outputs["aux_outputs"]) == 5


def test_encoder_proposes_as_the_original(case):
    assert ("enc_outputs" in case.outputs) == case.is_two_stage
    if case.is_two_stage:
        proposals = case.outputs["enc_outputs"]
        torch.testing.assert_close(proposals["pred_logits"][..., 0], case.value("enc_pred_logits_class0"), **LOGITS)
        torch.testing.assert_close(proposals["pred_boxes"], case.value("enc_pred_boxes"), **BOXES)


def test_matching_agrees_with_the_original(case):
    matches = case.config.build_criterion().matcher(case.outputs, case.targets(torch.float32))
    for image, (query, target) in enumerate(matches):
        assert query.tolist() == case.value(f"match{image}_query").tolist()
        assert target.tolist() == case.value(f"match{image}_target").tolist()


def test_detections_agree_with_the_original_in_order(case):
    sizes = [tuple(size) for size in case.golden.facts["image_sizes_hw"]]
    published = {name: case.value(name) for name in LAYER}
    # Exact from the original's predictions, and within the tolerance of the predictions from ours.
    for outputs, scores, fractions in ((published, 1e-7, 1e-6), (case.outputs, 5e-6, BOXES["atol"])):
        for image, detections in enumerate(case.config.build_postprocess()(outputs, sizes)):
            assert detections["labels"].tolist() == case.value(f"post{image}_labels").tolist()
            torch.testing.assert_close(detections["scores"], case.value(f"post{image}_scores"), rtol=0, atol=scores)
            pixels = {"rtol": 0, "atol": fractions * max(sizes[image])}
            torch.testing.assert_close(detections["boxes"], case.value(f"post{image}_boxes"), **pixels)


def test_every_loss_agrees_with_the_original(case):
    criterion = case.config.build_criterion()
    losses = criterion(case.outputs, case.targets(torch.float32))
    published = {key.removeprefix("loss/"): case.value(key) for key in case.golden.arrays if key.startswith("loss/")}
    assert losses.keys() == published.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(published[name].item(), rel=1e-4), name
    torch.testing.assert_close(criterion.total(losses).double(), case.value("loss_total"), rtol=1e-4, atol=0)


# With random weights. Observed are up to 0.007 and 0.0012 of the image's side.
def test_autocast_moves_boxes_by_little(case):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = case.model(case.images)
    # Proposals whose scores are equal in bfloat16 may come in another order.
    name = "enc_outputs" if case.is_two_stage else "aux_outputs"
    mine, expected = (layers[name] if case.is_two_stage else layers[name][-1] for layers in (outputs, case.outputs))
    moved = (mine["pred_boxes"] - expected["pred_boxes"]).abs()
    assert moved.max() < 0.02
    assert moved.mean() < 0.003


# In float64, because the gradient jumps where a sampling point crosses the center of a pixel: in float32 rounding
# changes norms by up to 4e-4 of their value.
@pytest.mark.slow
def test_the_norm_of_every_gradient_agrees_with_the_original(case):
    model = case.config.build().double().eval()
    model.load_state_dict(case.model.state_dict())
    criterion = case.config.build_criterion()
    outputs = model([image.double() for image in case.images])
    total = criterion.total(criterion(outputs, case.targets(torch.float64)))
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in to_original(gradients).items()}
    published = case.golden.facts["grad_norms"]
    assert {name for name, norm in published.items() if norm is None} & norms.keys() == set()
    expected = {name: norm for name, norm in published.items() if norm is not None}
    assert {name: norms[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    # Position encodings, valid ratios and pixel centers are computed in float32.
    assert total.item() == pytest.approx(case.value("loss_total").item(), rel=1e-8)
