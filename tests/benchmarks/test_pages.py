"""Generated parts of pages, their tables and charts."""

import pytest
from benchmarks import convergence, documents, flops, pages, pictures, trained
from benchmarks.cases import KINDS
from benchmarks.results import Spread, load_all


def test_pages_are_those_of_the_stored_results():
    assert pages.outdated(documents.all_parts()) == []


def test_charts_of_the_stored_results_exist():
    names = {pictures.chart(results) for kind in KINDS for results in load_all(pages.RESULTS, kind)}
    assert len(names) > 3
    assert all((pictures.IMAGES / name).exists() for name in names - {None})
    assert convergence.CHART.exists()


def test_training_on_blood_cells_lowered_the_loss_and_raised_precision():
    curve = pages.read(trained.STORED)["bccd_cpu"]["curve"]
    precisions = [row["AP"] for row in curve if row["AP"] is not None]
    assert curve[-1]["loss"] < curve[0]["loss"] / 2
    assert precisions[-1] > precisions[0]


def test_published_numbers_are_met_at_the_size_that_fits_best():
    results = pages.read(flops.STORED)
    for name, published in results["published_giga_multiply_adds"].items():
        total = results["counts"][name]["800x1104"]["total"] / 1e9
        # DETR's numbers come from another publication, with other images.
        assert total == pytest.approx(published, rel=0.05 if name.startswith("detr") else 0.0135), name


def test_parts_of_a_page_have_names(tmp_path):
    page = tmp_path / "page.md"
    labels = ("generated: start", "generated: end", "generated table: start", "generated table: end")
    page.write_text("\n".join(["# Title", *(f"<!-- {label} -->" for label in labels), "The end.\n"]))
    parts = {(page, ""): "first", (page, "table"): "| second |"}
    pages.write(parts | {(page, "table"): "| other |"})
    assert pages.outdated(parts) == ["page.md table"]
    pages.write(parts)
    assert pages.outdated(parts) == []
    assert page.read_text().startswith("# Title\n")
    assert page.read_text().endswith("\nThe end.\n")
    with pytest.raises(ValueError, match=r"page\.md lacks the marks <!-- generated chart: start -->"):
        pages.write({(page, "chart"): ""})


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


def test_tables_come_from_the_files_of_a_directory(results, tmp_path):
    results.save(tmp_path / "matcher_x.json")
    parts = documents.all_parts(tmp_path)
    source, table, absent, notes = parts[documents.PAGE, "matcher"].split("\n\n")[1:]
    assert source == (
        "Some CPU @ 2.0 GHz, 2 of 4 cores; python 3.11.7, torch 2.15.0; commit abc1234; 2026-01-02, seed 1: "
        "`python -m benchmarks run`."
    )
    lines = table.splitlines()
    assert lines[2] == "| few_b16, float32, forward | ours | 10 (9.9 to 10.1) | 2.00 (1.95 to 2.10) | 2.5 | 1.0e-07 |"
    assert lines[3] == "|  | plain | 20 (19.8 to 20.2) |  |  |  |"
    assert "disagrees: error 0.5 exceeds 0.0001" in lines[4]
    assert len(lines) == 5
    assert absent == "Not measured: `absent` (cannot be imported); `missing` (cannot be imported)."
    assert notes == "`plain`: by hand."
    assert parts[documents.PAGE, "operator cuda"] == "Not measured."
    summary = "| matcher few_b16, float32, forward | Some CPU @ 2.0 GHz, 2 threads | 20 (plain) | 10 | 2.00 |"
    assert summary in parts[pages.README, "benchmarks"]


def test_absence_from_some_cases_names_them(results, make_row, make_results):
    narrower = make_results(*results.rows, make_row(case="few_b2"))
    assert (
        "`absent` (cannot be imported) in few_b16; `missing` (cannot be imported) in few_b16."
        in documents.long_table(narrower)
    )


def test_models_are_related_to_matrix_products(make_row, make_results):
    products = {"float32": 8e10, "bfloat16": 32e10}
    row = make_row(seconds=0.1, flops=6_000_000_000, product_flops=products)
    table, operations = documents.long_table(make_results(row)).split("\n\n")
    assert table.splitlines()[0].endswith("| error | share of float32 products | share of bfloat16 products |")
    assert table.splitlines()[2].endswith("| 75% | 19% |")
    assert "few_b2 forward 6. GFLOP/s of the best matrix products: 80 to 80 in float32 and 320 to 320" in operations


def test_charts_are_labeled_and_the_same_every_time(results, tmp_path):
    curves = {"DETR": {2: {"AP": 0.1}, 20: {"AP": 0.2}}, "other": {2: {"AP": 0.1}}}
    drawings = []
    for name in ("first", "second"):
        times, lines = tmp_path / f"{name}_times.svg", tmp_path / f"{name}_curves.svg"
        pictures.draw_times(results, times)
        pictures.draw_curves(curves, {"AP": ("Precision", 0.2)}, "Some title", lines)
        drawings.append((times.read_text(), lines.read_text()))
    assert drawings[0] == drawings[1]
    assert all(label in drawings[0][0] for label in ("Hungarian matching", "few_b16", "ours", "plain", "10 (2 ×)"))
    assert all(label in drawings[0][1] for label in ("Some title", "Precision", "DETR", "other"))
