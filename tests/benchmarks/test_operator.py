"""The operator's inputs and providers; those that are not installed are stood in for by modules of their form."""

import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from benchmarks.agreement import largest_error
from benchmarks.cases import OPERATOR_CASES, OperatorCase, Task
from benchmarks.problems import UnavailableError, prepare
from benchmarks.problems.operator import prepare_operator
from benchmarks.problems.operator_inputs import (
    LOGITS,
    OFFSETS,
    SAMPLED,
    comparable,
    draw_inputs,
    expected,
    locate,
    weigh,
)
from benchmarks.problems.operator_providers import BASELINE, PROVIDERS, Provider
from benchmarks.runner import Settings, run_problem, run_task

from deformdetr.kernels import ms_deform_attn

QUICK = [case.quick() for case in OPERATOR_CASES]
TINY = OperatorCase(name="tiny", levels=((4, 5), (2, 3)), batch=2, heads=4, channels=4, points=2, queries=7)
COMPILED = [provider.name for provider in PROVIDERS if provider.name.endswith("_compiled")]
ON_CPU = {provider.name: provider for provider in PROVIDERS if provider.name not in COMPILED}


def error_of(candidates, name: str) -> float:
    (contender,) = (each.build() for each in candidates if each.name == name)
    contender.call()
    return largest_error(contender.outputs(), contender.expected())


def on_cpu(name: str) -> Provider:
    return replace(ON_CPU[name], devices=("cpu",))


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_providers_agree_forward_and_in_all_gradients(case, seed):
    for direction in case.directions:
        problem = prepare_operator(case, "float32", direction, "cpu", seed)
        for name in ("ours", "ours_gather", "ours_reference", "grid_sample"):
            assert error_of(problem.candidates, name) < problem.tolerance, (name, direction)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_agrees_within_its_tolerance(dtype, seed):
    problem = prepare_operator(TINY, dtype, "forward_backward", "cpu", seed)
    for name in ("ours", "grid_sample"):
        assert 1e-5 < error_of(problem.candidates, name) < problem.tolerance


def test_references_are_pixel_centres_in_encoders(seed):
    inputs = draw_inputs(replace(TINY, queries=None), torch.float32, "cpu", seed)
    on_pixels = inputs.reference_points[0, :20, 0] * torch.tensor([5, 4]) - 0.5
    torch.testing.assert_close(on_pixels[7], torch.tensor([2.0, 1.0]))
    assert torch.equal(inputs.reference_points[0], inputs.reference_points[1])


def test_heads_look_around_with_growing_distance(seed):
    case = replace(TINY, queries=4000, heads=8, points=3)
    mean = draw_inputs(case, torch.float32, "cpu", seed).sampling_offsets.mean((0, 1, 3))
    # Head 2 of 8 looks down, a quarter of a turn; 16,000 draws with a deviation of 2.
    torch.testing.assert_close(mean[2], torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), atol=0.1, rtol=0)
    diagonal = math.sqrt(0.5)
    torch.testing.assert_close(mean[1, 1], torch.tensor([2 * diagonal, 2 * diagonal]), atol=0.1, rtol=0)


def test_seed_decides_the_inputs(seed):
    first, again, other = (draw_inputs(TINY, torch.float32, "cpu", number) for number in (seed, seed, seed + 1))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.sampling_locations, again.sampling_locations)
    assert not torch.equal(first.value, other.value)


@pytest.mark.parametrize("form", [SAMPLED, LOGITS, OFFSETS], ids=lambda form: "_and_".join(form[1:]))
def test_expected_results_are_those_of_autograd_on_all_queries_at_once(form, monkeypatch, seed):
    # Two queries of the seven at a time.
    monkeypatch.setattr("benchmarks.problems.operator_inputs._POINTS_AT_ONCE", {"cpu": 2 * 2 * 4 * 2 * 2})
    inputs = draw_inputs(TINY, torch.float32, "cpu", seed).double().tracking(form)
    locations, weights = inputs.sampling_locations, inputs.attention_weights
    if "sampling_offsets" in form:
        locations = locate(inputs.reference_points, inputs.sampling_offsets, TINY.levels)
    if "attention_logits" in form:
        weights = weigh(inputs.attention_logits)
    output = ms_deform_attn(inputs.value, TINY.levels, locations, weights)
    grad = torch.randn_like(output)
    names = ["output", *(f"grad_{name}" for name in form)]
    tensors = [output, *torch.autograd.grad(output, inputs.leaves(form), grad)]
    results = expected(inputs, form, grad)
    assert list(results) == names
    assert largest_error(results, dict(zip(names, tensors, strict=True))) < 1e-12


def test_gradients_of_places_count_per_pixel_and_not_where_they_jump(seed):
    inputs = draw_inputs(TINY, torch.float32, "cpu", seed)
    inputs.sampling_locations[0, 0, 0, 0, 0] = torch.tensor([0.5, 0.3])  # x lies on the centre of the third pixel.
    results = comparable({"grad_sampling_locations": torch.ones(inputs.sampling_locations.shape)}, inputs, SAMPLED)
    gradient = results["grad_sampling_locations"]
    assert gradient[0, 0, 0, 0, 0].tolist() == [0.0, 0.25]
    torch.testing.assert_close(gradient[0, 1, 0, 1, 0].float(), torch.tensor([1 / 3, 1 / 2]))


def test_a_wrong_provider_is_reported_with_its_error_and_not_timed(seed):
    def load():
        return lambda inputs: 1.01 * ON_CPU["grid_sample"].load()(inputs)

    providers = (Provider(name="wrong", load=load), ON_CPU["grid_sample"])
    problem = prepare_operator(TINY, "float32", "forward", "cpu", seed, providers)
    settings = Settings(device="cpu", rounds=1, seed=seed)
    wrong, right = run_problem(Task(TINY, "float32", "forward"), problem, settings, lambda _: None)
    assert (wrong.status, wrong.time, wrong.speedup, wrong.rounds) == ("disagrees", None, None, 0)
    assert wrong.error == pytest.approx(0.01, rel=0.01)
    assert wrong.reason == "error 0.01 exceeds 0.0001"
    assert right.status == "measured"
    assert right.time is not None


def test_a_provider_with_a_wrong_gradient_alone_is_found_out(seed):
    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output):
            return output.clone()

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * 1.5

    wrong = Provider(name="wrong", load=lambda: lambda inputs: WrongBackward.apply(ON_CPU["ours"].load()(inputs)))
    for direction, is_found in (("forward", False), ("backward", True), ("forward_backward", True)):
        problem = prepare_operator(TINY, "float32", direction, "cpu", seed, (wrong,))
        assert (error_of(problem.candidates, "wrong") > problem.tolerance) == is_found


def test_a_provider_that_raises_is_reported_with_what_it_said(seed):
    def load():
        raise RuntimeError("no kernel image is available\nCUDA kernel errors might be ...")

    problem = prepare_operator(TINY, "float32", "forward", "cpu", seed, (Provider(name="broken", load=load),))
    task = Task(TINY, "float32", "forward")
    (row,) = run_problem(task, problem, Settings(device="cpu", rounds=1), lambda _: None)
    assert (row.status, row.reason) == ("failed", "RuntimeError: no kernel image is available")


def test_what_cannot_run_says_why(seed):
    task = Task(TINY, "bfloat16", "forward")
    settings = Settings(device="cpu", rounds=1, seed=seed, providers=["original*", "msda*", "flash*"])
    rows = {row.provider: row for row in run_task(task, settings, lambda _: None)}
    assert rows.pop(BASELINE).status == "measured"
    assert {row.status for row in rows.values()} == {"unavailable"}
    assert rows["original_extension"].reason == "does not run on cpu"
    original = replace(ON_CPU["original_extension"], devices=("cpu",))
    for dtype, reason in (("bfloat16", "does not take bfloat16"), ("float32", "cannot be imported: No module named")):
        problem = prepare_operator(TINY, dtype, "forward", "cpu", seed, (original,))
        with pytest.raises(UnavailableError, match=reason):
            problem.candidates[0].build()


def test_measured_rows_have_times_memory_and_speedup(seed):
    settings = Settings(device="cpu", rounds=3, seed=seed, providers=["ours"])
    rows = {row.provider: row for row in run_task(Task(TINY, "float32", "backward"), settings, lambda _: None)}
    ours, baseline = rows["ours"], rows[BASELINE]
    assert rows.keys() == {"ours", BASELINE}
    assert (ours.clock, ours.rounds) == ("wall", 3)
    assert ours.time.minimum <= ours.time.lower_quartile <= ours.time.median <= ours.time.upper_quartile
    assert baseline.speedup.median == 1
    assert ours.speedup.median > 0
    # The gradients at the least.
    assert ours.peak_bytes >= 4 * (2 * 26 * 16 + 2 * 7 * 4 * 2 * 2 * 3)


def test_prepare_draws_the_inputs_of_a_task(seed):
    problem = prepare(Task(TINY, "float32", "forward"), "cpu", seed)
    assert (problem.baseline, problem.clock) == ("grid_sample", "device")
    assert [candidate.name for candidate in problem.candidates] == [provider.name for provider in PROVIDERS]


def starts_of(shapes: torch.Tensor) -> torch.Tensor:
    areas = shapes.prod(1)
    return areas.cumsum(0) - areas


def check_level_tensors(shapes: torch.Tensor, starts: torch.Tensor) -> list[tuple[int, int]]:
    assert shapes.dtype == starts.dtype == torch.int64
    assert torch.equal(starts, starts_of(shapes))
    return [tuple(shape) for shape in shapes.tolist()]


def test_original_extension_is_called_as_it_asks_for(monkeypatch, seed):
    def forward(value, shapes, starts, locations, weights, step):
        assert len(value) % step == 0
        return ms_deform_attn(value, check_level_tensors(shapes, starts), locations, weights)

    def backward(value, shapes, starts, locations, weights, grad_output, step):
        assert grad_output.is_contiguous()
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        with torch.enable_grad():
            output = forward(leaves[0], shapes, starts, *leaves[1:], step)
        return torch.autograd.grad(output, leaves, grad_output)

    module = types.SimpleNamespace(ms_deform_attn_forward=forward, ms_deform_attn_backward=backward)
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", module)
    problem = prepare_operator(TINY, "float32", "forward_backward", "cpu", seed, (on_cpu("original_extension"),))
    assert error_of(problem.candidates, "original_extension") < problem.tolerance


@pytest.fixture
def rziga(monkeypatch):
    """Stand in for the package with this signature; the result keeps heads apart."""

    def attention(img, img_shapes, sampling_points, attention_weights, padding_mode, align_corners):
        assert (padding_mode, align_corners) == ("zeros", False)
        assert img.dtype == sampling_points.dtype
        shapes = [tuple(shape) for shape in img_shapes.tolist()]
        return ms_deform_attn(img, shapes, sampling_points, attention_weights).unflatten(-1, img.shape[2:])

    package = types.ModuleType("msda_triton")
    package.multiscale_deformable_attention = None
    frontend = types.SimpleNamespace(triton_multiscale_deformable_attention=attention)
    monkeypatch.setitem(sys.modules, "msda_triton", package)
    monkeypatch.setitem(sys.modules, "msda_triton.frontend", frontend)


@pytest.fixture
def roulbac(monkeypatch):
    def attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        assert value.dtype == sampling_locations.dtype == attention_weights.dtype
        shapes = check_level_tensors(spatial_shapes, level_start_index)
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)

    package = types.ModuleType("msda_triton")
    package.multi_scale_deformable_attention = attention
    monkeypatch.setitem(sys.modules, "msda_triton", package)


@pytest.mark.parametrize("name", ["rziga", "roulbac"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_packages_named_msda_triton_are_told_apart(name, dtype, request, seed):
    request.getfixturevalue(name)
    providers = (on_cpu("msda_triton_rziga"), on_cpu("msda_triton_roulbac"))
    for candidate in prepare_operator(TINY, dtype, "forward_backward", "cpu", seed, providers).candidates:
        if candidate.name == f"msda_triton_{name}":
            contender = candidate.build()
            assert largest_error(contender.outputs(), contender.expected()) < 5e-3
        else:
            with pytest.raises(UnavailableError, match="the other package of this name"):
                candidate.build()


def test_flash_attention_takes_logits_beside_locations(monkeypatch, seed):
    class FlashDeformAttnFunction:
        @staticmethod
        def apply(value, shapes, starts, together, step, points):
            assert len(value) % step == 0
            assert together.dtype == value.dtype
            batch, queries, heads, _ = together.shape
            locations, logits = together.split([2 * 2 * points, 2 * points], dim=-1)
            weights = logits.softmax(-1).view(batch, queries, heads, 2, points)
            locations = locations.view(batch, queries, heads, 2, points, 2)
            return ms_deform_attn(value, check_level_tensors(shapes, starts), locations, weights)

    monkeypatch.setitem(sys.modules, "DCNv4", types.ModuleType("DCNv4"))
    functions = types.SimpleNamespace(FlashDeformAttnFunction=FlashDeformAttnFunction)
    monkeypatch.setitem(sys.modules, "DCNv4.functions", functions)
    problem = prepare_operator(TINY, "float16", "forward_backward", "cpu", seed, (on_cpu("flash_deform_attn"),))
    assert error_of(problem.candidates, "flash_deform_attn") < 5e-3


def test_fused_operator_takes_offsets_and_logits(monkeypatch, seed):
    def fused(value, spatial_shapes, reference_points, sampling_offsets, attention_logits, padding_mask=None):
        locations = locate(reference_points, sampling_offsets, spatial_shapes)
        return ms_deform_attn(value, spatial_shapes, locations, weigh(attention_logits))

    monkeypatch.setattr("deformdetr.kernels.fused_ms_deform_attn", fused, raising=False)
    providers = (on_cpu("ours_fused"), on_cpu("ours_from_offsets"))
    problem = prepare_operator(TINY, "float32", "forward_backward", "cpu", seed, providers)
    for name in ("ours_fused", "ours_from_offsets"):
        assert error_of(problem.candidates, name) < problem.tolerance


@pytest.mark.compile
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", COMPILED)
def test_what_is_compiled_agrees(name, direction, seed):
    problem = prepare_operator(TINY, "float32", direction, "cpu", seed)
    assert error_of(problem.candidates, name) < problem.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
def test_ours_is_timed_in_a_graph_on_a_gpu(dtype, direction, seed):
    settings = Settings(device="cuda", rounds=2, seed=seed, providers=["ours", "ours_fused"])
    rows = {row.provider: row for row in run_task(Task(TINY, dtype, direction), settings, lambda _: None)}
    assert rows["ours"].status == "measured", rows["ours"].reason
    assert rows["ours"].clock == "cuda_graph", rows["ours"].note
    assert rows["ours"].wall_time is not None
