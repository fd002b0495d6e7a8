"""Generated pages, their tables and charts."""

import pytest
from benchmarks import bccd, convergence, documents, flops, transformers_speed
from benchmarks.cases import KINDS
from benchmarks.pages import generated_part, marks, outdated, write_generated_part
from benchmarks.pictures import charts, curve_styles, draw_curves, draw_times, write_charts
from benchmarks.results import Results, Spread, load_all, save

REPORTS = (bccd, convergence, flops, transformers_speed)


@pytest.mark.parametrize("module", REPORTS, ids=lambda module: module.__name__)
def test_pages_are_those_of_the_stored_results(module):
    assert outdated(module.REPORT.parts(module.REPORT.load())) == []


def test_benchmark_pages_are_those_of_the_stored_results():
    assert outdated(documents.parts()) == []


def test_charts_of_the_stored_results_exist():
    names = [name for kind in KINDS for results in load_all(documents.RESULTS, kind) for name in charts(results)]
    assert names
    assert [name for name in names if not (documents.IMAGES / name).exists()] == []
    assert convergence.CHART.exists()


def test_training_on_blood_cells_lowered_the_loss_and_raised_precision():
    epochs = bccd.REPORT.load()["epochs"]
    precisions = [row["AP"] for row in epochs if row.get("AP") is not None]
    assert epochs[-1]["loss"] < epochs[0]["loss"] / 2
    assert precisions[-1] > precisions[0]


def test_parts_of_a_page_have_names(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join(["# Title", *marks(), *marks("table"), "The end.\n"]))
    write_generated_part(page, "first")
    write_generated_part(page, "| second |", "table")
    write_generated_part(page, "| third |", "table")
    assert (generated_part(page), generated_part(page, "table")) == ("first", "| third |")
    assert page.read_text().startswith("# Title\n")
    assert page.read_text().endswith("\nThe end.\n")
    assert outdated({page: {"": "first", "table": "| fourth |"}}) == ["page.md table"]
    with pytest.raises(ValueError, match=r"page\.md lacks the marks <!-- generated chart: start -->"):
        write_generated_part(page, "", "chart")


@pytest.fixture
def results(make_row, make_results):
    rows = [
        make_row(seconds=0.01, speedup=Spread.of([1.9, 2.0, 2.2]), error=1e-7, peak_bytes=2_500_000),
        make_row("plain", 0.02, note="by hand"),
        make_row("wrong", None, status="disagrees", reason="error 0.5 exceeds 0.0001", error=0.5),
        make_row("absent", None, status="unavailable", reason="cannot be imported"),
        make_row("missing", None, status="unavailable", reason="cannot be imported"),
    ]
    return make_results(*(row.model_copy(update={"case": "few_b16"}) for row in rows))


def test_table_has_times_ratios_memory_and_what_is_missing(results):
    table, absent, notes = documents.long_table(results).split("\n\n")
    lines = table.splitlines()
    assert lines[2] == "| few_b16, float32, forward | ours | 10 (9.9 to 10.1) | 2.00 (1.95 to 2.10) | 2.5 | 1.0e-07 |"
    assert lines[3] == "|  | plain | 20 (19.8 to 20.2) |  |  |  |"
    assert "disagrees: error 0.5 exceeds 0.0001" in lines[4]
    assert len(lines) == 5
    assert absent == "Not measured: `absent`, `missing` (cannot be imported)."
    assert notes == "`plain`: by hand."


def test_absence_from_some_cases_names_them(results, make_row, make_results):
    narrower = make_results(*results.rows, make_row(case="few_b2"))
    assert "`absent`, `missing` in few_b16 (cannot be imported)." in documents.long_table(narrower)


def test_models_are_related_to_matrix_products(make_row, make_results):
    products = {"float32": 8e10, "bfloat16": 32e10}
    row = make_row(seconds=0.1, kind="model", flops=6_000_000_000, product_flops=products)
    table, operations = documents.long_table(make_results(row)).split("\n\n")
    assert table.splitlines()[0].endswith("| error | share of float32 products | share of bfloat16 products |")
    assert table.splitlines()[2].endswith("| 75% | 19% |")
    assert operations == (
        "GFLOP of a call: few_b2 forward 6. GFLOP/s of the best matrix products: 80 to 80 in float32 and 320 to 320 in "
        "bfloat16."
    )


def test_overhead_is_in_microseconds(make_row, make_run):
    overhead = Results(kind="overhead", runs=[make_run()], rows=[make_row(seconds=1.5e-4, kind="overhead")])
    table = documents.long_table(overhead)
    assert "time (quartiles), µs" in table
    assert "| ours | 150 (148 to 152) |" in table
    assert charts(overhead) == {}


def test_provenance_names_command_versions_commit_and_seed(make_run, environment):
    text = documents.provenance(make_run())
    for part in (
        "Some CPU @ 2.0 GHz, 2 of 4 cores",
        "torch 2.15.0;",
        "abc1234;",
        "seed 1",
        "`python -m benchmarks run`",
    ):
        assert part in text
    dirty = environment.model_copy(update={"dirty": True})
    text = documents.provenance(make_run(environment=dirty, complete=False))
    assert "uncommitted" in text
    assert "interrupted" in text


def test_summary_has_ours_beside_the_baseline(results):
    assert documents.summary_table([results]).splitlines()[2] == (
        "| matcher few_b16, float32, forward | Some CPU @ 2.0 GHz, 2 threads | 20 (plain) | 10 | 2.00 |"
    )
    assert documents.summary_table([]) == "Not measured."


def test_times_on_known_gpus_are_related_to_the_floor(make_row, make_run, environment):
    line = "| encoder_800x1333_b2 | float32 | 37.0 | 63.5 | 37.4 | 63.8 |"
    assert documents.floor_table().splitlines()[2] == line
    gpu = environment.model_copy(update={"device": "cuda", "device_name": "NVIDIA H200"})
    row = make_row(kind="operator", case="encoder_800x1333_b2", seconds=74.1e-6)
    measured = Results(kind="operator", runs=[make_run(environment=gpu)], rows=[row])
    assert documents.long_table(measured).splitlines()[2].endswith("| 50% |")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_charts_are_labeled_and_the_same_every_time(results, tmp_path, suffix):
    curve = {2: {"AP": 0.1}, 20: {"AP": 0.2}}
    drawings = []
    for name in ("first", "second"):
        times, curves = (tmp_path / f"{name}_{kind}.{suffix}" for kind in ("times", "curves"))
        draw_times([row for row in results.rows if row.time], "Some title", times)
        draw_curves({"DETR": curve, "other": curve}, {"AP": ("Precision", 0.2)}, "Other title", curves)
        drawings.append((times.read_bytes(), curves.read_bytes()))
    assert drawings[0] == drawings[1]
    if suffix == "svg":
        times, curves = drawings[0]
        assert all(label in times.decode() for label in ("Some title", "few_b16", "ours", "plain", "10 (2 ×)"))
        assert all(label in curves.decode() for label in ("Other title", "Precision", "DETR", "other"))


def test_many_tasks_are_drawn_in_several_charts(make_row, make_results, tmp_path):
    rows = [make_row(case=f"case_{index}", direction=("forward", "backward")[index % 2]) for index in range(14)]
    stem = "benchmark_matcher_cpu_some-cpu-2-0-ghz"
    assert list(charts(make_results(*rows[:4]))) == [f"{stem}.svg"]
    paths = write_charts(make_results(*rows), tmp_path)
    assert [path.name for path in paths] == [f"{stem}_float32_{each}.svg" for each in ("forward", "backward")]
    assert all(path.exists() for path in paths)
    assert charts(make_results(make_row(seconds=None, status="failed"))) == {}


def test_no_two_variants_are_drawn_alike():
    labels = [variant.label for variant in convergence.VARIANTS.values()]
    assert len({tuple(style.values()) for style in curve_styles(labels).values()}) == len(labels)


def test_parts_come_from_the_files_of_a_directory(results, tmp_path):
    save(results, tmp_path / "matcher_x.json")
    parts = documents.parts(tmp_path)
    assert "few_b16" in parts[documents.PAGE]["matcher"]
    assert parts[documents.PAGE]["operator cuda"] == "Not measured."
    assert "few_b16" in parts[documents.README]["benchmarks"]
