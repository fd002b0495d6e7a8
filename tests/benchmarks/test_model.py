"""Whole models: ours and that of transformers, with the same weights."""

import pytest
import torch
from benchmarks import measure
from benchmarks.cases import MODEL_CASES, Task
from benchmarks.problems import UnavailableError
from benchmarks.problems.model import MODELS, HuggingFace, Ours, describe, draw_batch, prepare_model
from benchmarks.problems.problem import largest_error
from benchmarks.runner import Settings, run_problem

from deformdetr import preset

CASES = {case.variant: case.quick() for case in MODEL_CASES}


@pytest.mark.parametrize("variant", ["multi_scale", "single_scale", "refine", "two_stage"])
def test_predictions_agree(variant, seed):
    problem = prepare_model(CASES[variant], "float32", "forward", "cpu", seed)
    for name, build in problem.candidates.items():
        contender = build()
        assert largest_error(contender.outputs(), contender.expected()) < problem.tolerance, name


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_agrees_and_changes_the_weights(name, seed):
    made = []
    models = {name: lambda *arguments: made.append(MODELS[name](*arguments)) or made[-1]}
    problem = prepare_model(CASES["multi_scale"], "float32", "training_step", "cpu", seed, models)
    contender = problem.candidates[name]()
    outputs = contender.outputs()
    assert largest_error(outputs, contender.expected()) < problem.tolerance
    # The loss, and the gradients of all trained parameters, by our names.
    assert outputs.keys() >= {"loss", "backbone.layer2.0.conv1.weight", "class_heads.0.bias"}
    assert "backbone.conv1.weight" not in outputs
    parameters = dict(made[-1].module.named_parameters())
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    contender.call()
    changed = {name for name, tensor in parameters.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, tensor in parameters.items() if tensor.requires_grad}


def test_models_are_timed_beside_matrix_products_unless_their_weights_differ(seed, monkeypatch):
    monkeypatch.setattr(measure, "PRODUCT_SIZES", {"cpu": (64,)})
    case = CASES["single_scale"]
    models = {"ours": lambda config, device, seed: Ours(config, device, seed + 1), "hugging_face": HuggingFace}
    problem = prepare_model(case, "float32", "forward", "cpu", seed, models)
    settings = Settings(device="cpu", rounds=1, seed=seed)
    wrong, theirs = run_problem(Task(case, "float32", "forward"), problem, settings)
    assert (wrong.status, wrong.time, wrong.flops) == ("disagrees", None, None)
    assert theirs.status == "measured"
    assert theirs.flops > 1e8
    assert theirs.product_flops.keys() == {"float32", "bfloat16"}
    expected = theirs.flops / theirs.time.median / theirs.product_flops["float32"]
    assert theirs.share_of_products("float32") == pytest.approx(expected)


def test_matrix_products_have_their_number_of_operations(monkeypatch):
    monkeypatch.setattr(measure, "PRODUCT_SIZES", {"cpu": (64,)})
    products = measure.matrix_products("cpu")
    assert [(dtype, flops) for dtype, flops, _ in products] == [
        (dtype, 2 * 64**3) for dtype in ("float32", "float32", "bfloat16", "bfloat16")
    ]
    assert all(product().numel() == 64**2 for _, _, product in products)


def test_only_ours_has_a_dilated_backbone(seed):
    config = describe(CASES["single_scale_dc5"])
    assert config.backbone.dilation
    with pytest.raises(UnavailableError, match="no dilated"):
        HuggingFace(config, "cpu", seed)


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
def test_cases_are_the_presets(case):
    name = f"deformable_detr_r50_{case.variant}".removesuffix("_multi_scale")
    assert describe(case).replace(criterion=preset("deformable_detr_r50").criterion) == preset(name)


def test_shrunk_batches_have_a_quarter_of_the_height_and_width(seed):
    batch = draw_batch(CASES["refine"], 7, "cpu", seed)
    small = batch.shrunk(torch.float64)
    assert small.images.shape == (1, 3, 40, 40)
    torch.testing.assert_close(small.images[0, 0, 0, 0], batch.images[0, 0, :4, :4].mean().double())
    assert small.targets[0]["boxes"].dtype == torch.float64
