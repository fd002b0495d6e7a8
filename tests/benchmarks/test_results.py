"""Stored results: nothing is lost, and runs can be joined."""

import math

import pytest
from benchmarks.results import Results, Spread, describe_environment, file_name, load, load_all, save


def test_spread_has_median_and_quartiles():
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 10.0]) == Spread(
        median=3.0, lower_quartile=2.0, upper_quartile=4.0, minimum=1.0
    )
    assert Spread.of([2.0]) == Spread(median=2.0, lower_quartile=2.0, upper_quartile=2.0, minimum=2.0)


def test_round_trip_through_a_file_changes_nothing(make_run, make_row, tmp_path):
    rows = [
        make_row(
            error=1.5e-7, peak_bytes=1234, rounds=3, calls_per_round=7, clock="wall", speedup=Spread.of([1.5, 2.0])
        ),
        make_row("wrong", None, status="disagrees", reason="error inf exceeds 0.0001", error=math.inf),
        make_row("absent", None, status="unavailable", reason="cannot be imported"),
    ]
    results = Results(kind="matcher", runs=[make_run()], rows=rows)
    save(results, tmp_path / "deeper" / "matcher_x.json")
    assert load(tmp_path / "deeper" / "matcher_x.json") == results
    assert load_all(tmp_path / "deeper", "matcher") == [results]
    assert load_all(tmp_path / "deeper", "model") == []


def test_another_file_is_refused_by_its_name(tmp_path):
    (tmp_path / "matcher_x.json").write_text('{"kind": "matcher"}')
    with pytest.raises(ValueError, match=r"matcher_x\.json does not hold results"):
        load(tmp_path / "matcher_x.json")


def test_a_later_run_replaces_the_tasks_that_it_measured(make_run, make_row):
    first = Results(
        kind="matcher", runs=[make_run(seed=1)], rows=[make_row(), make_row("plain"), make_row(case="few_b16")]
    )
    both = first.followed_by(make_run(seed=2), [make_row(seconds=1.0)])
    assert [each.seed for each in both.runs] == [1, 2]
    assert [(each.case, each.provider, each.run) for each in both.rows] == [
        ("few_b16", "ours", 0),
        ("few_b2", "ours", 1),
    ]
    # Nothing of the first is left.
    last = both.followed_by(make_run(seed=3), [make_row(case="few_b16")])
    assert [each.seed for each in last.runs] == [2, 3]
    assert [(each.case, each.run) for each in last.rows] == [("few_b2", 0), ("few_b16", 1)]


def test_files_are_named_by_kind_and_device(environment):
    assert file_name("matcher", environment) == "matcher_cpu_some-cpu-2-0-ghz.json"
    gpu = environment.model_copy(update={"device": "cuda", "device_name": "NVIDIA H200"})
    assert file_name("operator", gpu) == "operator_nvidia-h200.json"


def test_environment_names_versions_and_a_commit_that_is_given():
    found = describe_environment("cpu", "1234567")
    assert (found.device, found.commit, found.dirty) == ("cpu", "1234567", None)
    assert {"python", "torch", "numba", "triton", "transformers", "deformdetr"} == found.versions.keys()
    assert found.device_name
    assert found.threads >= 1
