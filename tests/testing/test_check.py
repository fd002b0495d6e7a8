"""The check finds mistakes, and reports them."""

import json

import pytest
import torch
from torch import Tensor, nn

from deformdetr.kernels import ms_deform_attn
from deformdetr.testing import (
    CASES,
    ConformanceError,
    Report,
    check_ms_deform_attn,
    check_problem,
    compute_exactly,
    random_problem,
)
from mutants import MUTANTS, rounds_locations_to_half, sums_in_the_dtype_of_the_value, swaps_x_and_y


def _found_by() -> list[object]:
    pairs = [(mutant, case) for mutant, cases in MUTANTS.items() for case in cases]
    return [
        pytest.param(
            *pair,
            id=f"{pair[0].__name__}-{pair[1]}",
            marks=[pytest.mark.compile] if CASES[pair[1]].mode in ("compile", "export") else [],
        )
        for pair in pairs
    ]


@pytest.mark.parametrize(("mutant", "case"), _found_by())
def test_mistakes_are_found(mutant, case: str, seed: int):
    report = check_ms_deform_attn(mutant, dtypes=[torch.float16], cases=[case], seed=seed)
    assert report.failures
    with pytest.raises(ConformanceError, match=case):
        report.raise_for_failures()


def test_every_mistake_has_a_case_and_nearly_every_case_a_mistake():
    assert {case for cases in MUTANTS.values() for case in cases} <= set(CASES)
    assert len(MUTANTS) >= 20


@pytest.mark.parametrize("mutant", [rounds_locations_to_half, sums_in_the_dtype_of_the_value])
def test_mistakes_in_half_precision_pass_in_float32(mutant, seed: int):
    (case,) = MUTANTS[mutant]
    check_ms_deform_attn(mutant, dtypes=[torch.float32], cases=[case], seed=seed).raise_for_failures()


def test_results_follow_from_the_seed():
    first, second = (check_ms_deform_attn(ms_deform_attn, cases=["pyramids"], seed=3) for _ in range(2))
    assert first == second
    other = check_ms_deform_attn(ms_deform_attn, cases=["pyramids"])
    assert other.seed != 3
    assert other.rows != first.rows


def test_exceptions_are_refusals_and_backward_alone_may_be_refused():
    def refuse(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
        raise KeyError("not today")

    report = check_ms_deform_attn(refuse, dtypes=[torch.float32], cases=["pyramids"])
    assert {(row.status, row.reason, row.error) for row in report.rows} == {
        ("refused", "KeyError: 'not today' (one_level)", None)
    }
    with pytest.raises(ConformanceError, match="not today"):
        report.raise_for_failures()

    def forward_only(
        value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
    ) -> Tensor:
        return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights).detach()

    report = check_ms_deform_attn(forward_only, dtypes=[torch.float32], cases=["pyramids"])
    assert [row.status for row in report.rows] == ["passed", "refused", "refused", "refused"]
    assert "does not require grad" in report.rows[1].reason


def test_wrong_results_count_before_refusals():
    def attend(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
        if not len(value):
            raise ValueError("no images")
        return swaps_x_and_y(value, spatial_shapes, sampling_locations, attention_weights)

    report = check_ms_deform_attn(attend, dtypes=[torch.float32], cases=["empty"])
    assert [row.status for row in report.rows] == ["failed"] * 4


def test_wrong_shapes_and_results_that_are_no_tensors_are_named():
    def transposed(
        value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
    ) -> Tensor:
        return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights).transpose(1, 2)

    (row, *_) = check_ms_deform_attn(transposed, dtypes=[torch.float32], cases=["queries_are_pixels"]).rows
    assert (row.status, row.reason) == ("failed", "the shape is (1, 8, 159), not (1, 159, 8)")
    nothing = check_ms_deform_attn(
        lambda value, shapes, locations, weights: None, dtypes=[torch.float32], cases=["queries_are_pixels"]
    )
    assert nothing.rows[0].reason == "TypeError: the result is no tensor, but NoneType"


def test_points_per_level_are_inapplicable_without_such_an_argument():
    report = check_ms_deform_attn(swaps_x_and_y, dtypes=[torch.float32], cases=["points_per_level"])
    assert [row.status for row in report.rows] == ["inapplicable"] * 4
    report.raise_for_failures()


def test_locations_may_have_the_dtype_of_the_value():
    seen = set()

    def attend(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
        seen.add((value.dtype, sampling_locations.dtype))
        return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)

    cases = ["pyramids", "far_outside", "precise_locations"]
    for dtype in (torch.float16, torch.bfloat16):
        check_ms_deform_attn(attend, dtypes=[dtype], cases=cases, locations_dtype=dtype).raise_for_failures()
        assert seen == {(dtype, dtype)}
        seen.clear()


def test_inputs_of_a_problem_hold_its_numbers_in_its_dtypes():
    for seed in range(20):
        problem = random_problem(seed)
        tensors = (problem.value, problem.sampling_locations, problem.attention_weights)
        for given, exact, dtype, need in zip(
            problem.inputs("cpu"), tensors, problem.dtypes, problem.needs, strict=True
        ):
            assert (given.dtype, given.requires_grad) == (dtype, need)
            torch.testing.assert_close(given.detach().double(), exact, rtol=0, atol=0, equal_nan=True)


def test_exact_results_need_finite_locations_nowhere():
    problem = random_problem(1)
    problem.sampling_locations.fill_(torch.nan)
    assert not any(tensor.any() for tensor in compute_exactly(problem))


def test_a_problem_may_be_checked_by_itself():
    seed = next(seed for seed in range(100) if min(random_problem(seed).value.shape) > 1)
    assert check_problem(ms_deform_attn, random_problem(seed)).failures == []


def test_dtypes_may_be_iterated_over_once():
    report = check_ms_deform_attn(ms_deform_attn, dtypes=iter([torch.float32]), cases=["thin_levels", "empty"])
    assert {row.case for row in report.rows} == {"thin_levels", "empty"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cases": ["edge"]}, ValueError, "cases must be among pyramids, .*, got 'edge'"),
        ({"cases": []}, ValueError, "cases must be among pyramids, .*, got none"),
        ({"dtypes": []}, ValueError, r"dtypes must be among torch\.float64, .*, got none"),
        ({"cases": "edges"}, ValueError, "a list of names, got the string 'edges'"),
        ({"dtypes": [torch.int64]}, ValueError, r"dtypes must be among torch\.float64, .*, got torch\.int64"),
        ({"function": lambda value, weights: value}, TypeError, "cannot tell what the parameters value, weights of"),
        ({"convention": ["value", "other"]}, TypeError, "the parameters value, other of .*ms_deform_attn get"),
    ],
    ids=lambda value: None,
)
@pytest.mark.unchecked
def test_wrong_arguments_are_refused_with_their_values(change, error, message):
    with pytest.raises(error, match=message):
        check_ms_deform_attn(**{"function": ms_deform_attn} | change)


class TestConventions:
    """Signatures of other implementations."""

    def check(self, function, convention=None):
        report = check_ms_deform_attn(function, dtypes=[torch.float32], cases=["pyramids"], convention=convention)
        report.raise_for_failures()
        return report

    def test_names_of_parameters_tell_what_they_get(self):
        def pure(value, value_spatial_shapes, sampling_locations, attention_weights):
            assert value_spatial_shapes.dtype == torch.int64
            return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)

        def reordered(im2col_step, img, img_shapes, sampling_points, attention_weights, padding_mode="zeros"):
            assert im2col_step == 64
            assert padding_mode == "zeros"
            return ms_deform_attn(img, img_shapes, sampling_points, attention_weights)

        assert self.check(pure).implementation.endswith("pure")
        self.check(reordered)

    def test_modules_and_autograd_functions(self):
        class Module(nn.Module):
            def forward(
                self,
                value: Tensor,
                value_spatial_shapes: Tensor,
                value_spatial_shapes_list: list[tuple[int, int]],
                level_start_index: Tensor,
                sampling_locations: Tensor,
                attention_weights: Tensor,
                im2col_step: int,
            ):
                assert [tuple(shape) for shape in value_spatial_shapes.tolist()] == value_spatial_shapes_list
                areas = [height * width for height, width in value_spatial_shapes_list]
                assert level_start_index.tolist() == [sum(areas[:level]) for level in range(len(areas))]
                return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)

        self.check(Module())

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value, value_spatial_shapes, level_start_index, sampling_loc, attn_weight, im2col_step):
                ctx.save_for_backward(value, value_spatial_shapes, sampling_loc, attn_weight)
                return ms_deform_attn(value, value_spatial_shapes, sampling_loc, attn_weight)

            @staticmethod
            def backward(ctx, grad):
                from deformdetr.kernels import ms_deform_attn_backward

                grads = ms_deform_attn_backward(grad.contiguous(), *ctx.saved_tensors)
                return grads[0], None, None, *grads[1:], None

        self.check(Function.apply)

    def test_order_may_be_given(self):
        def opaque(*arguments):
            value, starts, locations, shapes, weights = arguments
            assert starts[0] == 0
            return ms_deform_attn(value, shapes, locations, weights)

        self.check(opaque, ["value", "starts", "locations", "spatial_shapes_list", "weights"])


@pytest.fixture(scope="module")
def report() -> Report:
    cases = ["pyramids", "points_per_level", "unsampled_nan"]
    return check_ms_deform_attn(
        lambda value, shapes, locations, weights: swaps_x_and_y(value, shapes, locations, weights) + 0 * value.sum(),
        dtypes=[torch.float32, torch.float16],
        cases=cases,
        seed=5,
    )


class TestReport:
    def test_table_has_a_line_for_each_case_and_dtype(self, report: Report):
        lines = str(report).splitlines()
        assert lines[0].split()[:3] == ["case", "dtype", "output"]
        assert [line.split()[:2] for line in lines[1:7]] == [
            [case, dtype]
            for case in ("pyramids", "points_per_level", "unsampled_nan")
            for dtype in ("float32", "float16")
        ]
        assert lines[1].count("FAILED") == 4
        assert "inapplicable" in lines[3]
        assert "not finite FAILED" in lines[5]
        assert any(
            line.startswith("points_per_level float32, points_per_level float16: inapplicable") for line in lines
        )
        assert lines[-1].endswith("(seed=5)")

    def test_markdown_has_the_same_lines(self, report: Report):
        lines = report.markdown().splitlines()
        assert len(lines) == 2 + 6
        assert all(line.count("|") == 8 for line in lines)

    def test_json_round_trips(self, report: Report):
        assert Report.from_json(report.json()) == report
        assert json.loads(report.json(), parse_constant=pytest.fail)["seed"] == 5
