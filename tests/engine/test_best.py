"""Comparing evaluations, and ending runs early."""

import pytest

from deformdetr.engine import EarlyStoppingConfig
from deformdetr.engine._best import BestScore


def test_higher_ap_is_better_and_masks_decide_between_equal_ones():
    best = BestScore()
    scores = [(0.2, 0.1), (0.2, 0.1), (0.1, 0.9), (0.2, 0.3), (0.3, 0.0)]
    assert [best.update({"AP": ap, "segm": {"AP": masks}}) for ap, masks in scores] == [True, False, False, True, True]
    assert best.score == (0.3, 0.0)


def test_without_objects_nothing_is_best():
    best = BestScore(EarlyStoppingConfig(patience=1))
    assert not best.update({"AP": None})
    assert best.ap is None
    assert not best.has_ended


@pytest.mark.parametrize(("min_rise", "ends_after"), [(0.0, 5), (0.05, 3)])
def test_run_ends_after_so_many_evaluations_without_a_rise(min_rise, ends_after):
    best = BestScore(EarlyStoppingConfig(patience=2, min_rise=min_rise))
    ended = []
    for ap in (0.1, 0.12, 0.14, 0.14, 0.13):
        best.update({"AP": ap})
        ended.append(best.has_ended)
    assert ended.index(True) + 1 == ends_after
    assert best.ap == 0.14


def test_waiting_goes_on_after_resuming():
    best, other = BestScore(EarlyStoppingConfig(patience=3)), BestScore(EarlyStoppingConfig(patience=3))
    for ap in (0.2, 0.1, 0.1):
        best.update({"AP": ap})
    other.load_state(best.state())
    other.update({"AP": 0.15})
    assert other.has_ended
    assert other.ap == 0.2


def test_without_the_setting_a_run_never_ends_early():
    best = BestScore()
    for _ in range(100):
        best.update({"AP": 0.0})
    assert not best.has_ended


@pytest.mark.parametrize(("score", "is_best"), [((0.2, 0.0), False), (None, True)])
def test_the_score_alone_that_older_runs_saved_is_restored(score, is_best):
    best = BestScore(EarlyStoppingConfig(patience=1))
    best.load_state(score)
    assert best.score == score
    assert best.update({"AP": 0.1}) is is_best
    assert best.has_ended is not is_best
