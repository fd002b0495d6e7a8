"""The command line."""

import pytest
from benchmarks import __main__ as main
from benchmarks.results import load, save


def test_a_quick_run_measures_and_stores(tmp_path, capsys):
    command = ["run", "--quick", "--device", "cpu", "--rounds", "2", "--only", "few_b2", "--seed", "7"]
    assert main.main([*command, "--kind", "matcher", "--kind", "criterion", "--out", str(tmp_path)]) == 0
    files = sorted(tmp_path.iterdir())
    assert [file.name.partition("_")[0] for file in files] == ["criterion", "matcher"]
    (run,) = load(files[1]).runs
    assert (run.seed, run.complete) == (7, True)
    assert run.command.startswith("python -m benchmarks run --quick")
    assert [(row.case, row.provider, row.status) for row in load(files[1]).rows] == [
        ("few_b2", "ours", "measured"),
        ("few_b2", "plain", "measured"),
    ]
    printed = capsys.readouterr().out
    assert "matcher/few_b2 float32 forward" in printed
    assert str(files[0]) in printed


def test_what_a_file_has_of_other_cases_can_be_kept(tmp_path):
    command = ["run", "--quick", "--device", "cpu", "--rounds", "1", "--kind", "matcher", "--out", str(tmp_path)]
    assert main.main([*command, "--only", "few_b2"]) == 0
    assert main.main([*command, "--only", "many", "--keep"]) == 0
    (file,) = tmp_path.iterdir()
    assert [(row.case, row.run) for row in load(file).rows] == [("few_b2", 0)] * 2 + [("many_b4", 1)] * 2
    assert main.main([*command, "--only", "many"]) == 0
    assert {row.case for row in load(file).rows} == {"many_b4"}


def test_quick_runs_are_not_stored_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "RESULTS", tmp_path)
    assert main.main(["run", "--quick", "--device", "cpu", "--rounds", "1", "--only", "matcher/few_b2"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_ours_is_wrong_fails(monkeypatch, make_row, capsys):
    wrong = make_row(seconds=None, status="disagrees", reason="error 0.5 exceeds 0.0001")
    monkeypatch.setattr(main, "run_task", lambda *arguments: [wrong])
    assert main.main(["run", "--quick", "--device", "cpu", "--only", "matcher/few_b2"]) == 1
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
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["run", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_absent_gpu_is_named(monkeypatch, capsys):
    monkeypatch.setattr(main.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main.main(["run", "--device", "cuda"])
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err


def test_comparison_fails_where_ours_got_slower(make_row, make_results, tmp_path, capsys):
    before, slower, faster = (tmp_path / name for name in ("before.json", "slower.json", "faster.json"))
    save(make_results(make_row()), before)
    save(make_results(make_row(seconds=0.3)), slower)
    save(make_results(make_row(seconds=0.2)), faster)
    assert main.main(["compare", str(before), str(before)]) == 0
    assert main.main(["compare", str(before), str(faster)]) == 0
    assert main.main(["compare", str(before), str(slower)]) == 1
    assert main.main(["compare", str(before), str(slower), "--tolerance", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "few_b2 float32 forward: ours: 250 ms -> 300 ms, 1.20 times" in printed


def test_files_that_cannot_be_compared_are_named(make_row, make_results, tmp_path, capsys):
    save(make_results(make_row()), tmp_path / "matcher.json")
    save(make_results(make_row()).model_copy(update={"kind": "model"}), tmp_path / "model.json")
    for other, message in (("model.json", "of the model"), ("absent.json", "absent.json")):
        with pytest.raises(SystemExit):
            main.main(["compare", str(tmp_path / "matcher.json"), str(tmp_path / other)])
        assert message in capsys.readouterr().err
