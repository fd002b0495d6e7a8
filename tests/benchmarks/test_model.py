"""Whole models: ours and that of transformers, from the same weights."""

import pytest
import torch
from benchmarks.agreement import largest_error
from benchmarks.cases import MODEL_CASES, Task
from benchmarks.problems import UnavailableError
from benchmarks.problems.model import MODELS, prepare_model
from benchmarks.problems.models import HuggingFace, Ours, describe, draw_batch
from benchmarks.runner import Settings, run_problem

CASES = {case.variant: case.quick() for case in MODEL_CASES}


@pytest.mark.parametrize("variant", ["multi_scale", "single_scale", "refine", "two_stage"])
def test_predictions_agree(variant, seed):
    problem = prepare_model(CASES[variant], "float32", "forward", "cpu", seed)
    for candidate in problem.candidates:
        contender = candidate.build()
        assert largest_error(contender.outputs(), contender.expected()) < problem.tolerance, candidate.name


def test_a_step_of_training_agrees_and_changes_the_weights(seed):
    made = []

    def keep(make):
        return lambda *arguments: made.append(make(*arguments)) or made[-1]

    models = [(name, keep(make)) for name, make in MODELS]
    problem = prepare_model(CASES["multi_scale"], "float32", "training_step", "cpu", seed, models)
    for candidate in problem.candidates:
        contender = candidate.build()
        outputs = contender.outputs()
        assert largest_error(outputs, contender.expected()) < problem.tolerance, candidate.name
        # The loss, and the gradients of all that trains, by our names.
        assert outputs.keys() >= {"loss", "backbone.layer2.0.conv1.weight", "class_heads.0.bias"}
        assert "backbone.conv1.weight" not in outputs
        before = {name: tensor.clone() for name, tensor in made[-1].module.named_parameters()}
        contender.call()
        after = dict(made[-1].module.named_parameters())
        assert {name for name in after if not torch.equal(after[name], before[name])} == {
            name for name, tensor in after.items() if tensor.requires_grad
        }


def test_a_model_with_other_weights_is_not_timed(seed):
    def other(config, device, seed):
        return Ours(config, device, seed + 1)

    case = CASES["single_scale"]
    problem = prepare_model(case, "float32", "forward", "cpu", seed, (("ours", other), ("hugging_face", HuggingFace)))
    task = Task(case, "float32", "forward")
    settings = Settings(device="cpu", rounds=1, seed=seed)
    wrong, theirs = run_problem(task, problem, settings, lambda _: None)
    assert (wrong.status, wrong.time) == ("disagrees", None)
    assert theirs.status == "measured"


def test_dilated_backbone_is_ours_alone(seed):
    config = describe(CASES["single_scale_dc5"])
    with pytest.raises(UnavailableError, match="no dilated"):
        HuggingFace(config, "cpu", seed)
    assert config.backbone.dilation


def test_cases_are_the_presets(seed):
    presets = {
        "single_scale": "deformable_detr_r50_single_scale",
        "single_scale_dc5": "deformable_detr_r50_single_scale_dc5",
        "multi_scale": "deformable_detr_r50",
        "refine": "deformable_detr_r50_refine",
        "two_stage": "deformable_detr_r50_two_stage",
    }
    from deformdetr import preset

    for case in MODEL_CASES:
        config = describe(case)
        assert config.replace(criterion=preset("deformable_detr_r50").criterion) == preset(presets[case.variant])


def test_batch_is_shrunk_to_a_quarter_of_its_sides(seed):
    batch = draw_batch(CASES["refine"], 7, "cpu", seed)
    small = batch.shrunk(torch.float64)
    assert small.images.shape == (1, 3, 40, 40)
    torch.testing.assert_close(small.images[0, 0, 0, 0], batch.images[0, 0, :4, :4].mean().double())
    assert small.targets[0]["boxes"].dtype == torch.float64
