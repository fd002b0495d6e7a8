"""Ours and the plain formulation of matching and losses."""

from functools import partial

import pytest
import torch
from benchmarks.agreement import largest_error
from benchmarks.cases import CRITERION_CASES, MATCHER_CASES, Task
from benchmarks.problems.matching import (
    draw_predictions,
    judge_plainly,
    match_plainly,
    prepare_criterion,
    prepare_matcher,
)
from benchmarks.runner import Settings, run_problem

from deformdetr.matching import HungarianMatcher

matcher_cases = pytest.mark.parametrize("case", [case.quick() for case in MATCHER_CASES], ids=lambda case: case.name)
criterion_cases = pytest.mark.parametrize(
    "case", [case.quick() for case in CRITERION_CASES], ids=lambda case: case.name
)


@matcher_cases
def test_matchers_agree(case, seed):
    problem = prepare_matcher(case, "cpu", seed)
    for candidate in problem.candidates:
        contender = candidate.build()
        assert largest_error(contender.outputs(), contender.expected()) < problem.tolerance, candidate.name


@matcher_cases
def test_predictions_have_found_the_targets(case, seed):
    layers, targets = draw_predictions(case, "cpu", seed)
    assert [layer["pred_logits"].shape[1] for layer in layers] == [70] * 2 + [90] * bool(case.proposals)
    for pairs in match_plainly(layers, [targets] * len(layers)):
        for (query, index), target, boxes in zip(pairs, targets, layers[0]["pred_boxes"], strict=True):
            assert len(query) == len(target["labels"]) == len(index)
            assert boxes.shape[1] == 4


def test_a_matcher_that_finds_another_matching_is_not_timed(seed):
    case = MATCHER_CASES[0].quick()

    def shifted(layers, targets):
        return [[(query, index.roll(1)) for query, index in pairs] for pairs in match_plainly(layers, targets)]

    problem = prepare_matcher(case, "cpu", seed, (("ours", shifted), ("plain", match_plainly)))
    task = Task(case, "float32", "forward")
    wrong, plain = run_problem(task, problem, Settings(device="cpu", rounds=1), lambda _: None)
    assert (wrong.status, wrong.time) == ("disagrees", None)
    assert (plain.status, plain.clock) == ("measured", "wall")


@criterion_cases
def test_criteria_agree_in_the_loss_and_all_gradients(case, seed):
    problem = prepare_criterion(case, "cpu", seed)
    for candidate in problem.candidates:
        contender = candidate.build()
        results = contender.outputs()
        assert len(results) == 1 + 2 * (2 + bool(case.proposals))
        assert largest_error(results, contender.expected()) < problem.tolerance, candidate.name


def test_a_criterion_without_one_layer_is_found_out(seed):
    case = CRITERION_CASES[0].quick()

    def forgetful(outputs, targets):
        loss = judge_plainly({**outputs, "aux_outputs": []}, targets)
        return loss + 0 * sum(tensor.sum() for layer in outputs["aux_outputs"] for tensor in layer.values())

    problem = prepare_criterion(case, "cpu", seed, (("ours", forgetful),))
    contender = problem.candidates[0].build()
    assert largest_error(contender.outputs(), contender.expected()) == pytest.approx(1)


def test_plain_matching_takes_images_apart(rng, seed):
    case = MATCHER_CASES[0].quick()
    layers, targets = draw_predictions(case, "cpu", seed)
    match = partial(match_plainly, layers, [targets] * len(layers))
    for plain, ours in zip(match(), HungarianMatcher().match_layers(layers, [targets] * len(layers)), strict=True):
        for (query, index), (our_query, our_index) in zip(plain, ours, strict=True):
            assert torch.equal(query, our_query)
            assert torch.equal(index, our_index)
