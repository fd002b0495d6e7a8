"""The commands `run` and `compare`."""

import pytest
from benchmarks import __main__ as main
from benchmarks.results import load, save

QUICK = ("run", "--quick", "--device", "cpu", "--rounds", "1")


def test_a_quick_run_measures_and_stores(tmp_path, capsys):
    command = [*QUICK, "--only", "few_b2", "--seed", "7", "--out", str(tmp_path)]
    assert main.main([*command, "--kind", "matcher", "--kind", "criterion"]) == 0
    files = sorted(tmp_path.iterdir())
    assert [file.name.partition("_")[0] for file in files] == ["criterion", "matcher"]
    (run,) = load(files[1]).runs
    assert (run.seed, run.complete) == (7, True)
    assert run.command.startswith("python -m benchmarks run --quick")
    rows = [(row.case, row.provider, row.status) for row in load(files[1]).rows]
    assert rows == [("few_b2", "ours", "measured"), ("few_b2", "plain", "measured")]
    printed = capsys.readouterr().out
    assert "matcher/few_b2 float32 forward (1 of 2)" in printed
    assert str(files[0]) in printed


def test_results_of_other_cases_can_be_kept(tmp_path):
    command = [*QUICK, "--kind", "matcher", "--out", str(tmp_path)]
    assert main.main([*command, "--only", "few_b2"]) == 0
    assert main.main([*command, "--only", "many", "--keep"]) == 0
    (file,) = tmp_path.iterdir()
    assert [(row.case, row.run) for row in load(file).rows] == [("few_b2", 0)] * 2 + [("many_b4", 1)] * 2
    assert main.main([*command, "--only", "many"]) == 0
    assert {row.case for row in load(file).rows} == {"many_b4"}


def test_quick_runs_are_stored_only_on_request(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "RESULTS", tmp_path)
    assert main.main([*QUICK, "--only", "matcher/few_b2"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_ours_is_wrong_fails(monkeypatch, make_row, capsys):
    wrong = make_row(seconds=None, status="disagrees", reason="error 0.5 exceeds 0.0001")
    monkeypatch.setattr(main, "run_task", lambda *arguments: [wrong])
    assert main.main([*QUICK, "--only", "matcher/few_b2"]) == 1
    assert "ours disagrees in matcher/few_b2 forward: error 0.5 exceeds 0.0001" in capsys.readouterr().err


def test_list_names_cases_and_providers(capsys):
    assert main.main(["run", "--list", "--kind", "operator"]) == 0
    printed = capsys.readouterr().out
    assert "operator/encoder_480x640_b1: forward, forward_backward on cpu (float32)" in printed
    assert "grid_sample_compiled" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing_like_it"], "nothing_like_it in its name"),
        (["--rounds", "0"], "--rounds must be positive, got 0"),
        (["--threads", "-1"], "--threads must be positive, got -1"),
        (["--device", "cpu", "--only", "dino_encoder"], "dino_encoder_800x1333_b4 is not measured on cpu"),
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
        save(make_results(make_row(seconds=seconds)), path)
    assert main.main(["compare", str(before), str(faster)]) == 0
    assert main.main(["compare", str(before), str(slower)]) == 1
    assert main.main(["compare", str(before), str(slower), "--tolerance", "0.3"]) == 0
    assert "few_b2 float32 forward: ours: 250 ms -> 300 ms, 1.20 times" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "message"), [("model.json", "of the model"), ("absent.json", "absent.json")])
def test_files_that_cannot_be_compared_are_named(other, message, make_row, make_results, tmp_path, capsys):
    results = make_results(make_row())
    save(results, tmp_path / "matcher.json")
    save(results.model_copy(update={"kind": "model"}), tmp_path / "model.json")
    with pytest.raises(SystemExit):
        main.main(["compare", str(tmp_path / "matcher.json"), str(tmp_path / other)])
    assert message in capsys.readouterr().err
