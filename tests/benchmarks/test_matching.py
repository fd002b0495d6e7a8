"""Our matching and losses, and the plain ones that they are compared with."""

import pytest
import torch
from benchmarks.cases import CRITERION_CASES, MATCHER_CASES, Task
from benchmarks.problems.matching import draw_predictions, match_plainly, plain_loss, prepare_criterion, prepare_matcher
from benchmarks.problems.problem import largest_error
from benchmarks.runner import Settings, run_problem

from deformdetr.matching import HungarianMatcher

FEW = MATCHER_CASES[0].quick()


@pytest.mark.parametrize("case", [case.quick() for case in MATCHER_CASES], ids=lambda case: case.name)
def test_matchers_agree(case, seed):
    problem = prepare_matcher(case, "cpu", seed)
    for name, build in problem.candidates.items():
        contender = build()
        assert largest_error(contender.outputs(), contender.expected()) < problem.tolerance, name


@pytest.mark.parametrize("case", [case.quick() for case in CRITERION_CASES], ids=lambda case: case.name)
def test_criteria_agree_in_the_loss_and_all_gradients(case, seed):
    problem = prepare_criterion(case, "cpu", seed)
    for name, build in problem.candidates.items():
        contender = build()
        results = contender.outputs()
        assert len(results) == 1 + 2 * (2 + bool(case.proposals))
        assert largest_error(results, contender.expected()) < problem.tolerance, name


def test_a_matcher_that_finds_another_matching_is_not_timed(seed):
    def shifted(layers, targets):
        return [[(query, index.roll(1)) for query, index in pairs] for pairs in match_plainly(layers, targets)]

    problem = prepare_matcher(FEW, "cpu", seed, {"ours": shifted, "plain": match_plainly})
    settings = Settings(device="cpu", rounds=1)
    wrong, plain = run_problem(Task(FEW, "float32", "forward"), problem, settings)
    assert (wrong.status, wrong.time) == ("disagrees", None)
    assert (plain.status, plain.clock) == ("measured", "wall")


def test_a_criterion_that_leaves_out_a_layer_disagrees(seed):
    def forgetful(outputs, targets):
        loss = plain_loss({**outputs, "aux_outputs": []}, targets)
        return loss + 0 * sum(tensor.sum() for layer in outputs["aux_outputs"] for tensor in layer.values())

    problem = prepare_criterion(CRITERION_CASES[0].quick(), "cpu", seed, {"ours": forgetful})
    contender = problem.candidates["ours"]()
    assert largest_error(contender.outputs(), contender.expected()) == pytest.approx(1)


def test_plain_matching_finds_our_pairs(seed):
    layers, targets = draw_predictions(FEW, "cpu", seed)
    of_layers = [targets] * len(layers)
    matchings = (match_plainly(layers, of_layers), HungarianMatcher().match_layers(layers, of_layers))
    for plain, ours in zip(*matchings, strict=True):
        for target, (query, index), pair in zip(targets, plain, ours, strict=True):
            assert len(query) == len(target["labels"])
            assert torch.equal(query, pair[0])
            assert torch.equal(index, pair[1])
