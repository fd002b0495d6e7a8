"""Charts, tables and the page that they stand on."""

import pytest
from benchmarks import documents
from benchmarks.cases import OPERATOR_CASES
from benchmarks.documents import PAGE, README, SUMMARY, parts, summary, write_pages
from benchmarks.pages import generated_part, has_generated_part, marks, write_generated_part
from benchmarks.plots import charts, plot, write_charts
from benchmarks.results import Results, Spread, load_all, save
from benchmarks.tables import floor_table, long_table, provenance, summary_table


def test_page_is_that_of_the_stored_results():
    for name, text in parts().items():
        assert generated_part(PAGE, name) == text


def test_readme_is_that_of_the_stored_results():
    if has_generated_part(README, SUMMARY):
        assert generated_part(README, SUMMARY) == summary()


def test_charts_of_the_stored_results_are_there():
    everything = [
        each for kind in ("operator", "model", "matcher", "criterion") for each in load_all(documents.RESULTS, kind)
    ]
    names = [name for results in everything for name in charts(results)]
    assert names
    assert [name for name in names if not (documents.IMAGES / name).exists()] == []


def test_parts_of_a_page_have_names(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join(["# Title", *marks(), *marks("table"), "The end.\n"]))
    write_generated_part(page, "first")
    write_generated_part(page, "| second |", "table")
    write_generated_part(page, "| third |", "table")
    assert generated_part(page) == "first"
    assert generated_part(page, "table") == "| third |"
    assert page.read_text().startswith("# Title\n")
    assert page.read_text().endswith("\nThe end.\n")
    assert not has_generated_part(page, "chart")
    with pytest.raises(ValueError, match=r"page\.md lacks the marks <!-- generated chart: start -->"):
        write_generated_part(page, "", "chart")


@pytest.fixture
def results(make_row, make_results):
    speedup = Spread.of([1.9, 2.0, 2.2])
    return make_results(
        make_row(seconds=0.01, speedup=speedup, error=1e-7, peak_bytes=2_500_000, case="few_b16"),
        make_row("plain", 0.02, case="few_b16", note="by hand"),
        make_row("wrong", None, case="few_b16", status="disagrees", reason="error 0.5 exceeds 0.0001", error=0.5),
        make_row("absent", None, case="few_b16", status="unavailable", reason="cannot be imported"),
        make_row("missing", None, case="few_b16", status="unavailable", reason="cannot be imported"),
    )


def test_table_has_times_ratios_memory_and_what_is_missing(results):
    table, absent, notes = long_table(results).split("\n\n")
    lines = table.splitlines()
    assert lines[2] == "| few_b16, float32, forward | ours | 10 (9.9 to 10.1) | 2.00 (1.95 to 2.10) | 2.5 | 1.0e-07 |"
    assert lines[3] == "|  | plain | 20 (19.8 to 20.2) |  |  |  |"
    assert "disagrees: error 0.5 exceeds 0.0001" in lines[4]
    assert len(lines) == 5
    assert absent == "Not measured: `absent`, `missing` (cannot be imported)."
    assert notes == "`plain`: by hand."


def test_absence_from_some_cases_names_them(results, make_row, make_results):
    narrower = make_results(*results.rows, make_row(case="few_b2"))
    assert "`absent`, `missing` in few_b16 (cannot be imported)." in long_table(narrower)


def test_provenance_names_command_versions_commit_and_seed(results, make_run, environment):
    text = provenance(results)
    for part in (
        "Some CPU @ 2.0 GHz, 2 of 4 cores",
        "torch 2.15.0;",
        "abc1234;",
        "seed 1",
        "`python -m benchmarks run`",
    ):
        assert part in text
    dirty = make_run(environment=environment.model_copy(update={"dirty": True}), complete=False)
    text = provenance(results.followed_by(dirty, []))
    assert "uncommitted" in text
    assert "interrupted" in text


def test_summary_has_ours_beside_the_baseline(results):
    assert summary_table([results]).splitlines()[2] == (
        "| matcher few_b16, float32, forward | Some CPU @ 2.0 GHz, 2 threads | 20 (plain) | 10 | 2.00 |"
    )
    assert summary_table([]) == "Not measured."


def test_floors_stand_there_unmeasured_and_measured(make_row, make_run, environment):
    case = next(case for case in OPERATOR_CASES if case.name == "encoder_800x1333_b2")
    lines = floor_table(None).splitlines()
    line = next(line for line in lines if case.name in line and "float32" in line)
    assert line == f"| {case.name}, float32 | forward | 37.0 | not measured |  | 37.4 | not measured |  |"
    gpu = environment.model_copy(update={"device": "cuda", "device_name": "NVIDIA H200"})
    row = make_row(kind="operator", case=case.name, seconds=74.1e-6)
    measured = Results(kind="operator", runs=[make_run(environment=gpu)], rows=[row])
    line = next(line for line in floor_table(measured).splitlines() if case.name in line and "float32" in line)
    assert line == f"| {case.name}, float32 | forward | 37.0 | 74.1 | 50% | 37.4 | not measured |  |"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_charts_name_cases_and_providers_and_are_the_same_every_time(results, tmp_path, suffix):
    rows = [row for row in results.rows if row.time]
    first, second = (tmp_path / f"{name}.{suffix}" for name in ("first", "second"))
    for path in (first, second):
        plot(rows, "Some title", path)
    assert first.read_bytes() == second.read_bytes()
    if suffix == "svg":
        text = first.read_text()
        assert all(label in text for label in ("Some title", "few_b16", "ours", "plain", "10 (2 ×)"))


def test_many_tasks_are_drawn_in_several_charts(make_row, make_results, tmp_path):
    rows = [make_row(case=f"case_{index}", direction=("forward", "backward")[index % 2]) for index in range(14)]
    few, many = make_results(*rows[:4]), make_results(*rows)
    assert list(charts(few)) == ["benchmark_matcher_cpu_some-cpu-2-0-ghz.svg"]
    paths = write_charts(many, tmp_path)
    stem = "benchmark_matcher_cpu_some-cpu-2-0-ghz_float32"
    assert [path.name for path in paths] == [f"{stem}_forward.svg", f"{stem}_backward.svg"]
    assert all(path.exists() for path in paths)
    assert charts(make_results(make_row(seconds=None, status="failed"))) == {}


def test_pages_are_written_and_missing_places_named(results, tmp_path, monkeypatch):
    save(results, tmp_path / "results" / "matcher_x.json")
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    page.write_text("\n".join(line for name in parts() if name != "model" for line in marks(name)))
    readme.write_text("\n".join(marks(SUMMARY)))
    monkeypatch.setattr(documents, "PAGE", page)
    monkeypatch.setattr(documents, "README", readme)
    complaints = write_pages(tmp_path / "results")
    assert len(complaints) == 1
    assert "<!-- generated model: start --> and <!-- generated model: end -->" in complaints[0]
    assert "few_b16" in generated_part(page, "matcher")
    assert generated_part(page, "operator cuda") == "Not measured."
    assert "few_b16" in generated_part(readme, SUMMARY)
