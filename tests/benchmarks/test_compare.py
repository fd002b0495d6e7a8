"""Comparison of two runs."""

import pytest
from benchmarks.compare import compare, regressions
from benchmarks.results import Spread


def compare_by(by, before, after):
    return compare(before, after, tolerance=0.1, by=by)


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.25, "same"), (0.27, "same"), (0.30, "slower"), (0.23, "same"), (0.20, "faster")]
)
def test_a_row_is_slower_if_its_time_grew_by_more_than_the_tolerance(make_row, make_results, seconds, verdict):
    (change,) = compare_by("time", make_results(make_row()), make_results(make_row(seconds=seconds)))
    assert change.verdict == verdict
    assert change.factor == pytest.approx(seconds / 0.25)


def test_noise_is_not_a_change(make_row, make_results):
    noisy = Spread(median=0.4, lower_quartile=0.2, upper_quartile=0.6, minimum=0.2)
    (change,) = compare_by("time", make_results(make_row()), make_results(make_row(time=noisy)))
    assert change.verdict == "same"
    assert change.lower < 1 < change.factor


def test_speedups_hide_a_busy_machine_and_show_a_slower_row(make_row, make_results):
    speedup = Spread.of([2.0, 2.01, 2.02])
    before, after = (make_results(make_row(seconds=seconds, speedup=speedup)) for seconds in (0.25, 0.75))
    verdicts = [compare_by(by, before, after)[0].verdict for by in ("speedup", "time")]
    assert verdicts == ["same", "slower"]
    halved = make_results(make_row(speedup=Spread.of([1.0, 1.005, 1.01])))
    (change,) = compare_by("speedup", before, halved)
    assert (change.verdict, change.factor) == ("slower", pytest.approx(2.0))


def test_rows_without_a_baseline_are_compared_by_time(make_row, make_results):
    (change,) = compare_by("speedup", make_results(make_row()), make_results(make_row(seconds=0.5)))
    assert (change.by, change.verdict) == ("time", "slower")
    assert "250 ms -> 500 ms, 2.00 times the time by time (1.96 to 2.04)" in str(change)


def test_only_our_rows_can_regress(make_row, make_results):
    before = make_results(make_row(), make_row("plain"), make_row(case="few_b16"), make_row(case="many_b4"))
    after = make_results(
        make_row(seconds=0.5),
        make_row("plain", seconds=0.5),
        make_row(case="few_b16", seconds=None, status="failed", reason="RuntimeError: no"),
    )
    changes = compare_by("time", before, after)
    assert [change.verdict for change in changes] == ["slower", "slower", "lost", "lost"]
    assert [change.before.case for change in regressions(changes)] == ["few_b2", "few_b16", "many_b4"]


def test_new_rows_and_rows_never_measured_are_listed(make_row, make_results):
    absent = make_row("other", None, status="unavailable", reason="cannot be imported")
    changes = compare_by("time", make_results(absent), make_results(absent, make_row()))
    assert [change.verdict for change in changes] == ["unmeasured", "new"]
    assert regressions(changes) == []
    assert str(changes[0]).endswith("few_b2 float32 forward: other (cannot be imported)")
