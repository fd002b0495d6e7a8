"""Two runs side by side."""

import pytest
from benchmarks.compare import compare, describe, regressions
from benchmarks.results import Spread


def changes_of(before, after, **options):
    return compare(before, after, **{"tolerance": 0.1, "by": "time"} | options)


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.25, "same"), (0.27, "same"), (0.30, "slower"), (0.23, "same"), (0.20, "faster")]
)
def test_a_row_is_slower_where_its_time_grew_by_more_than_the_tolerance(make_row, make_results, seconds, verdict):
    (change,) = changes_of(make_results(make_row()), make_results(make_row(seconds=seconds)))
    assert change.verdict == verdict
    assert change.factor == pytest.approx(seconds / 0.25)


def test_noise_is_not_a_change(make_row, make_results):
    noisy = Spread(median=0.4, lower_quartile=0.2, upper_quartile=0.6, minimum=0.2)
    (change,) = changes_of(make_results(make_row()), make_results(make_row(time=noisy)))
    assert change.verdict == "same"
    assert change.lower < 1 < change.factor


def test_a_busy_machine_is_not_a_change_by_speedup(make_row, make_results):
    speedup = Spread.of([2.0, 2.01, 2.02])
    before = make_results(make_row(speedup=speedup))
    after = make_results(make_row(seconds=0.75, speedup=speedup))
    (by_speedup,) = changes_of(before, after, by="speedup")
    (by_time,) = changes_of(before, after, by="time")
    assert (by_speedup.verdict, by_time.verdict) == ("same", "slower")
    halved = make_results(make_row(speedup=Spread.of([1.0, 1.005, 1.01])))
    (change,) = changes_of(before, halved, by="speedup")
    assert (change.verdict, change.factor) == ("slower", pytest.approx(2.0))


def test_rows_without_a_baseline_are_compared_by_time(make_row, make_results):
    (change,) = changes_of(make_results(make_row()), make_results(make_row(seconds=0.5)), by="speedup")
    assert (change.by, change.verdict) == ("time", "slower")


def test_only_ours_can_regress(make_row, make_results):
    before = make_results(make_row(), make_row("plain"), make_row(case="few_b16"), make_row(case="many_b4"))
    after = make_results(
        make_row(seconds=0.5),
        make_row("plain", seconds=0.5),
        make_row(case="few_b16", seconds=None, status="failed", reason="RuntimeError: no"),
    )
    changes = changes_of(before, after)
    assert [change.verdict for change in changes] == ["slower", "slower", "lost", "lost"]
    assert [change.key[0] for change in regressions(changes)] == ["few_b2", "few_b16", "many_b4"]


def test_new_rows_and_those_that_were_never_measured_are_named(make_row, make_results):
    absent = make_row("other", None, status="unavailable", reason="cannot be imported")
    changes = changes_of(make_results(absent), make_results(absent, make_row()))
    assert [change.verdict for change in changes] == ["unmeasured", "new"]
    assert regressions(changes) == []
    assert describe(changes[0]).endswith("few_b2 float32 forward: other (cannot be imported)")


def test_changes_are_described_with_times_and_spread(make_row, make_results):
    (change,) = changes_of(make_results(make_row()), make_results(make_row(seconds=0.5)))
    assert "250 ms -> 500 ms, 2.00 times the time by time (1.96 to 2.04)" in describe(change)
