"""The page on public implementations, and the command that writes it."""

import os
import signal

import pytest
import torch
from benchmarks import pages
from tools import conformance

from deformdetr.kernels import ms_deform_attn
from deformdetr.testing import CASES, Row, check_ms_deform_attn

STORED = pages.read(conformance.STORED)


def test_page_is_that_of_the_stored_results():
    assert pages.outdated(conformance.parts()) == []


def test_stored_results_are_those_of_known_implementations_and_cases():
    assert set(STORED) <= set(conformance.IMPLEMENTATIONS)
    for name, entry in STORED.items():
        given = conformance.IMPLEMENTATIONS[name]
        for case in CASES:
            dtypes = [str(dtype).removeprefix("torch.") for dtype in conformance.DTYPES if case in given.cases(dtype)]
            assert list(entry["results"].get(case, {})) == dtypes


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
    assert conformance._results(both.rows) == {"edges": {"float16": "refused"}, "pyramids": {"float16": "failed"}}
    refused, failed = conformance._reasons(both.rows)
    assert refused == {"case": "edges", "status": "refused", "reason": "no", "where": ["float16 grad_value"]}
    assert failed["where"][0] == "float16 output"


def test_an_implementation_that_ends_the_process_fails_that_case_alone():
    def attend(value, spatial_shapes, sampling_locations, attention_weights):
        os.kill(os.getpid(), signal.SIGKILL)

    given = conformance.Implementation(lambda _: attend, ())
    (row,) = conformance._check_apart(given, attend, "long_sums", torch.float32)
    assert (row.case, row.status, row.reason) == ("long_sums", "failed", "it ended the process by SIGKILL")
    passed = conformance._check_apart(given, ms_deform_attn, "long_sums", torch.float32)
    assert [row.status for row in passed] == ["passed"] * 4


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        conformance.main(["nobody's"])
    assert "there is no implementation nobody's" in capsys.readouterr().err
