"""The page on public implementations, and the command that writes it."""

import pytest
import torch
from benchmarks import pages
from tools import conformance

from deformdetr.testing import CASES, Row, check_ms_deform_attn

STORED = pages.read(conformance.STORED)


def test_page_is_that_of_the_stored_results():
    assert pages.outdated(conformance.parts()) == []


def test_stored_results_are_those_of_known_implementations_and_cases():
    assert set(STORED) <= set(conformance.IMPLEMENTATIONS)
    for entry in STORED.values():
        assert set(entry["results"]) <= set(CASES)
        assert set(CASES) - set(entry["results"]) <= {"huge_batch"}


@pytest.mark.parametrize("name", [name for name in STORED if name.startswith("deformdetr")])
def test_this_library_passes_everything(name: str):
    assert STORED[name]["reasons"] == []
    statuses = {status for by_dtype in STORED[name]["results"].values() for status in by_dtype.values()}
    assert statuses == {"passed"}


def test_worst_status_of_a_case_counts():
    report = check_ms_deform_attn(
        lambda value, shapes, locations, weights: value, cases=["pyramids"], dtypes=[torch.half]
    )
    passed = Row("edges", "float16", "output", "passed", 0.0, 1.0)
    rows = [passed, Row("edges", "float16", "grad_value", "refused", None, 1.0, "no"), *report.rows]
    both = type(report)("f", "cpu", 1, {}, rows)
    assert conformance._results([both]) == {"edges": {"float16": "refused"}, "pyramids": {"float16": "failed"}}
    refused, failed = conformance._reasons([both])
    assert refused == {"case": "edges", "status": "refused", "reason": "no", "where": ["float16 grad_value"]}
    assert failed["where"][0] == "float16 output"


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        conformance.main(["nobody's"])
    assert "there is no implementation nobody's" in capsys.readouterr().err
