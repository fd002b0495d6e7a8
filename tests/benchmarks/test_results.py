"""Stored results."""

import math

import pytest
from benchmarks.results import Spread, describe_environment, file_name, load, load_all, save


def test_spread_has_median_and_quartiles():
    spread = Spread(median=3.0, lower_quartile=2.0, upper_quartile=4.0, minimum=1.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 10.0]) == spread
    assert Spread.of([2.0]) == Spread(median=2.0, lower_quartile=2.0, upper_quartile=2.0, minimum=2.0)


def test_results_are_the_same_after_a_round_trip(make_results, make_row, tmp_path):
    measured = {"error": 1.5e-7, "peak_bytes": 1234, "rounds": 3, "clock": "wall", "speedup": Spread.of([1.5, 2.0])}
    results = make_results(
        make_row(flops=10, product_flops={"float32": 1e9}, **measured),
        make_row("wrong", None, status="disagrees", reason="error inf exceeds 0.0001", error=math.inf),
        make_row("absent", None, status="unavailable", reason="cannot be imported"),
    )
    path = tmp_path / "deeper" / "matcher_x.json"
    save(results, path)
    assert load(path) == results
    assert load_all(path.parent, "matcher") == [results]
    assert load_all(path.parent, "model") == []


def test_other_files_are_refused_by_name(tmp_path):
    (tmp_path / "matcher_x.json").write_text('{"kind": "matcher"}')
    with pytest.raises(ValueError, match=r"matcher_x\.json does not hold results"):
        load(tmp_path / "matcher_x.json")


def test_a_later_run_replaces_the_tasks_that_it_measured(make_run, make_row, make_results):
    first = make_results(make_row(), make_row("plain"), make_row(case="few_b16"))
    both = first.followed_by(make_run(seed=2), [make_row(seconds=1.0)])
    assert [each.seed for each in both.runs] == [1, 2]
    rows = [(each.case, each.provider, each.run) for each in both.rows]
    assert rows == [("few_b16", "ours", 0), ("few_b2", "ours", 1)]
    # The first run has no rows left.
    last = both.followed_by(make_run(seed=3), [make_row(case="few_b16")])
    assert [each.seed for each in last.runs] == [2, 3]
    assert [(each.case, each.run) for each in last.rows] == [("few_b2", 0), ("few_b16", 1)]


def test_files_are_named_by_kind_and_device(environment):
    assert file_name("matcher", environment) == "matcher_cpu_some-cpu-2-0-ghz.json"
    gpu = environment.model_copy(update={"device": "cuda", "device_name": "NVIDIA H200"})
    assert file_name("operator", gpu) == "operator_nvidia-h200.json"


def test_environment_has_versions_and_the_given_commit():
    found = describe_environment("cpu", "1234567")
    assert (found.device, found.commit, found.dirty) == ("cpu", "1234567", None)
    assert {"python", "torch", "numba", "triton", "transformers", "deformdetr"} == found.versions.keys()
    assert found.device_name
    assert found.threads >= 1
