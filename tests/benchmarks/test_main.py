"""The commands `run`, `compare` and `plot`, and the files that they read and write."""

import math

import pytest
from benchmarks import __main__ as main
from benchmarks import runner
from benchmarks.results import Results, Spread, compare, load

QUICK = ("run", "--quick", "--device", "cpu", "--rounds", "1")


def test_a_quick_run_measures_and_stores(tmp_path, capsys):
    command = [*QUICK, "--only", "few_b2", "--seed", "7", "--out", str(tmp_path)]
    assert main.main([*command, "--kind", "matcher", "--kind", "criterion"]) == 0
    files = sorted(tmp_path.iterdir())
    assert [file.name.partition("_")[0] for file in files] == ["criterion", "matcher"]
    (run,) = load(files[1]).runs
    assert (run["seed"], run["complete"]) == (7, True)
    assert run["command"].startswith("python -m benchmarks run --quick")
    assert run["environment"]["versions"].keys() == {
        "python", "torch", "numba", "triton", "transformers", "deformops", "deformdetr"
    }  # fmt: skip
    rows = [(row.case, row.provider, row.status) for row in load(files[1]).rows]
    assert rows == [("few_b2", "ours", "measured"), ("few_b2", "plain", "measured")]
    assert "matcher/few_b2 float32 forward (1 of 1)" in capsys.readouterr().out


def test_results_of_other_cases_can_be_kept(tmp_path):
    command = [*QUICK, "--kind", "matcher", "--out", str(tmp_path)]
    for case, more, cases in (("few_b2", [], ["few_b2"]), ("many", ["--keep"], ["few_b2", "many_b4"])):
        assert main.main([*command, "--only", case, *more]) == 0
        (file,) = tmp_path.iterdir()
        assert list(dict.fromkeys(row.case for row in load(file).rows)) == cases


def test_a_later_run_replaces_the_tasks_that_it_measured(make_row, make_results):
    first = make_results(make_row(), make_row("plain"), make_row(case="few_b16"))
    both = first.followed_by({"seed": 2}, [make_row(seconds=1.0)])
    assert [each["seed"] for each in both.runs] == [1, 2]
    rows = [(each.case, each.provider, each.run) for each in both.rows]
    assert rows == [("few_b16", "ours", 0), ("few_b2", "ours", 1)]
    # The first run has no rows left.
    last = both.followed_by({"seed": 3}, [make_row(case="few_b16")])
    assert [each["seed"] for each in last.runs] == [2, 3]
    assert [(each.case, each.run) for each in last.rows] == [("few_b2", 0), ("few_b16", 1)]


def test_results_are_the_same_after_a_round_trip(make_results, make_row, tmp_path):
    measured = {"error": 1.5e-7, "peak_bytes": 1234, "rounds": 3, "clock": "wall", "speedup": Spread.of([1.5, 2.0])}
    results = make_results(
        make_row(flops=10, product_flops={"float32": 1e9}, **measured),
        make_row("wrong", None, status="disagrees", reason="error inf exceeds 0.0001", error=math.inf),
    )
    path = tmp_path / "deeper" / "matcher_x.json"
    results.save(path)
    assert load(path) == results
    spread = Spread(median=3.0, lower_quartile=2.0, upper_quartile=4.0, minimum=1.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 10.0]) == spread


def test_quick_runs_are_stored_only_on_request(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "RESULTS", tmp_path)
    assert main.main([*QUICK, "--only", "matcher/few_b2"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_ours_is_wrong_fails(monkeypatch, make_row, capsys):
    wrong = make_row(seconds=None, status="disagrees", reason="error 0.5 exceeds 0.0001")
    monkeypatch.setattr(runner, "run_task", lambda *arguments: [wrong])
    assert main.main([*QUICK, "--only", "matcher/few_b2"]) == 1
    assert "ours disagrees in matcher/few_b2 float32 forward: error 0.5 exceeds 0.0001" in capsys.readouterr().err


def test_list_names_cases_and_providers(capsys):
    assert main.main(["run", "--list", "--kind", "operator"]) == 0
    printed = capsys.readouterr().out
    assert "operator/encoder_480x640_b1: forward, forward_backward on cpu (float32)" in printed
    assert "grid_sample_compiled" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--only", "nothing_like_it"], "no case that is measured on cpu"),
        (["--device", "cpu", "--only", "dino_encoder"], "no case that is measured on cpu"),
        (["--rounds", "0"], "--rounds must be positive, got 0"),
        (["--threads", "-1"], "--threads must be positive, got -1"),
        (["--device", "cuda"], "PyTorch sees no CUDA device"),
    ],
)
def test_wrong_arguments_are_reported(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(main.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main.main(["run", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_comparison_fails_if_ours_got_slower(make_row, make_results, tmp_path, capsys):
    before, slower, faster = (tmp_path / name for name in ("before.json", "slower.json", "faster.json"))
    for path, seconds in ((before, 0.25), (slower, 0.3), (faster, 0.2)):
        make_results(make_row(seconds=seconds)).save(path)
    assert main.main(["compare", str(before), str(faster)]) == 0
    assert main.main(["compare", str(before), str(slower)]) == 1
    assert main.main(["compare", str(before), str(slower), "--tolerance", "0.3"]) == 0
    assert "few_b2 float32 forward: ours: 250 ms -> 300 ms, 1.20 times" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "message"), [("model.json", "of the model"), ("absent.json", "absent.json")])
def test_files_that_cannot_be_compared_are_named(other, message, make_row, make_results, tmp_path, capsys):
    results = make_results(make_row())
    results.save(tmp_path / "matcher.json")
    Results(kind="model", runs=results.runs).save(tmp_path / "model.json")
    with pytest.raises(SystemExit):
        main.main(["compare", str(tmp_path / "matcher.json"), str(tmp_path / other)])
    assert message in capsys.readouterr().err


def test_speedups_hide_a_busy_machine_and_show_a_slower_row(make_row, make_results):
    speedup = Spread.of([2.0, 2.01, 2.02])
    before, after = (make_results(make_row(seconds=seconds, speedup=speedup)) for seconds in (0.25, 0.75))
    assert compare(before, after)[0][0] == "same"
    halved = make_results(make_row(speedup=Spread.of([1.0, 1.005, 1.01])))
    ((verdict, text),) = compare(before, halved)
    assert verdict == "SLOWER"
    assert "2.00 times the time by speedup" in text


def test_noise_is_no_change_and_only_our_rows_are_in_capitals(make_row, make_results):
    noisy = Spread(median=0.4, lower_quartile=0.2, upper_quartile=0.6, minimum=0.2)
    absent = make_row("other", None, status="unavailable", reason="cannot be imported")
    rows = [make_row(), make_row("plain"), make_row(case="few_b16"), make_row(case="many_b4"), absent]
    changes = compare(
        make_results(*rows),
        make_results(
            make_row(time=noisy),
            make_row("plain", seconds=0.5),
            make_row(case="few_b16", seconds=None, status="failed", reason="RuntimeError: no"),
            make_row(case="proposals_b2"),
            absent,
        ),
    )
    assert [verdict for verdict, _ in changes] == ["same", "slower", "LOST", "LOST", "unmeasured", "new"]
    assert changes[2][1] == "few_b16 float32 forward: ours (RuntimeError: no)"
    assert changes[4][1].endswith("few_b2 float32 forward: other (cannot be imported)")
