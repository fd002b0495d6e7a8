"""Conformance of any implementation of multi-scale deformable attention: a named list of what kernels get wrong.

`check_ms_deform_attn` runs all cases and returns a report. `pytest --pyargs deformdetr.testing --implementation
module:function` runs each as a test. Inputs and tolerances are public, for tests and fuzzers of others.
"""

from deformdetr.testing._cases import CASES, Case
from deformdetr.testing._check import check_ms_deform_attn, check_problem
from deformdetr.testing._inputs import (
    LAYOUTS,
    PYRAMIDS,
    Layout,
    Problem,
    away_from_pixel_borders,
    lay_out,
    make_problem,
    output_and_gradients,
    random_inputs,
)
from deformdetr.testing._random import random_problem
from deformdetr.testing._report import ConformanceError, Report, Row
from deformdetr.testing._run import compute_exactly
from deformdetr.testing._tolerances import TOLERANCES, relative_error, tolerance

__all__ = [
    "CASES",
    "LAYOUTS",
    "PYRAMIDS",
    "TOLERANCES",
    "Case",
    "ConformanceError",
    "Layout",
    "Problem",
    "Report",
    "Row",
    "away_from_pixel_borders",
    "check_ms_deform_attn",
    "check_problem",
    "compute_exactly",
    "lay_out",
    "make_problem",
    "output_and_gradients",
    "random_inputs",
    "random_problem",
    "relative_error",
    "tolerance",
]
