"""The operator's inputs, providers and overhead; packages that are not installed are replaced by stand-ins."""

import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from benchmarks.cases import OPERATOR_CASES, OVERHEAD_CASES, OperatorCase, Task
from benchmarks.problems import UnavailableError, prepare
from benchmarks.problems.operator import prepare_operator
from benchmarks.problems.operator_inputs import SAMPLED, comparable, draw_inputs
from benchmarks.problems.operator_providers import BASELINE, PROVIDERS, Provider
from benchmarks.problems.problem import largest_error
from benchmarks.runner import Settings, run_problem, run_task

from deformdetr.kernels import ms_deform_attn

TINY = OperatorCase("tiny", ((4, 5), (2, 3)), 2, 7, heads=4, channels=4, points=2)
COMPILED = [provider.name for provider in PROVIDERS if provider.name.endswith("_compiled")]


def on_cpu(name: str) -> Provider:
    return replace(next(each for each in PROVIDERS if each.name == name), devices=("cpu",))


def error_of(problem, name: str) -> float:
    contender = problem.candidates[name]()
    contender.call()
    return largest_error(contender.outputs(), contender.expected())


def run_tiny(providers, seed, **options):
    problem = prepare_operator(TINY, "float32", "forward", "cpu", seed, providers)
    settings = Settings(device="cpu", rounds=1, seed=seed, **options)
    return run_problem(Task(TINY, "float32", "forward"), problem, settings)


@pytest.mark.parametrize("case", [case.quick() for case in OPERATOR_CASES], ids=lambda case: case.name)
def test_providers_agree_forward_and_in_all_gradients(case, seed):
    for direction in case.directions:
        problem = prepare_operator(case, "float32", direction, "cpu", seed)
        for name in ("ours", "ours_fused", "ours_reference", "grid_sample"):
            assert error_of(problem, name) < problem.tolerance, (name, direction)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_agrees_within_its_tolerance(dtype, seed):
    problem = prepare_operator(TINY, dtype, "forward_backward", "cpu", seed)
    for name in ("ours", "grid_sample"):
        assert 1e-5 < error_of(problem, name) < problem.tolerance


@pytest.mark.parametrize("direction", OVERHEAD_CASES[0].directions)
def test_overhead_is_measured_of_functions_and_of_the_layer(direction, seed):
    settings = Settings(device="cpu", rounds=1, seed=seed)
    rows = run_task(Task(OVERHEAD_CASES[0], "float32", direction), settings)
    found = {row.provider: (row.status, row.clock) for row in rows}
    for name in ("ours", "ours_fused", "ours_layer", "grid_sample"):
        assert found[name] == ("measured", "wall")


def test_reference_points_of_encoders_are_pixel_centers(seed):
    inputs = draw_inputs(replace(TINY, queries=None), torch.float32, "cpu", seed)
    on_pixels = inputs.reference_points[0, :20, 0] * torch.tensor([5, 4]) - 0.5
    torch.testing.assert_close(on_pixels[7], torch.tensor([2.0, 1.0]))
    assert torch.equal(inputs.reference_points[0], inputs.reference_points[1])


def test_heads_look_in_all_directions_with_growing_distance(seed):
    case = replace(TINY, queries=4000, heads=8, points=3)
    mean = draw_inputs(case, torch.float32, "cpu", seed).sampling_offsets.mean((0, 1, 3))
    # Head 2 of 8 looks down, a quarter of a turn. Means of 16,000 draws with a deviation of 2.
    torch.testing.assert_close(mean[2], torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), atol=0.1, rtol=0)
    diagonal = math.sqrt(0.5)
    torch.testing.assert_close(mean[1, 1], torch.tensor([2 * diagonal, 2 * diagonal]), atol=0.1, rtol=0)


def test_the_seed_determines_the_inputs(seed):
    first, again, other = (draw_inputs(TINY, torch.float32, "cpu", number) for number in (seed, seed, seed + 1))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.sampling_locations, again.sampling_locations)
    assert not torch.equal(first.value, other.value)


def test_gradients_of_locations_are_per_pixel_and_left_out_where_they_jump(seed):
    inputs = draw_inputs(TINY, torch.float32, "cpu", seed)
    inputs.sampling_locations[0, 0, 0, 0, 0] = torch.tensor([0.5, 0.3])  # x lies on the center of the third pixel.
    results = comparable({"grad_sampling_locations": torch.ones(inputs.sampling_locations.shape)}, inputs, SAMPLED)
    gradient = results["grad_sampling_locations"]
    assert gradient[0, 0, 0, 0, 0].tolist() == [0.0, 0.25]
    torch.testing.assert_close(gradient[0, 1, 0, 1, 0].float(), torch.tensor([1 / 3, 1 / 2]))


def test_a_wrong_provider_is_reported_with_its_error_and_not_timed(seed):
    baseline = on_cpu(BASELINE)
    wrong = Provider(name="wrong", load=lambda: lambda inputs: 1.01 * baseline.load()(inputs))
    wrong, right = run_tiny((wrong, baseline), seed)
    assert (wrong.status, wrong.time, wrong.speedup, wrong.rounds) == ("disagrees", None, None, 0)
    assert wrong.error == pytest.approx(0.01, rel=0.01)
    assert wrong.reason == "error 0.01 exceeds 0.0001"
    assert right.status == "measured"
    assert right.time is not None


def test_a_provider_with_only_its_gradient_wrong_disagrees(seed):
    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output):
            return output.clone()

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * 1.5

    wrong = Provider(name="wrong", load=lambda: lambda inputs: WrongBackward.apply(on_cpu("ours").load()(inputs)))
    for direction, disagrees in (("forward", False), ("backward", True), ("forward_backward", True)):
        problem = prepare_operator(TINY, "float32", direction, "cpu", seed, (wrong,))
        assert (error_of(problem, "wrong") > problem.tolerance) == disagrees


def test_a_provider_that_raises_is_reported_with_its_error(seed):
    def load():
        raise RuntimeError("no kernel image is available\nCUDA kernel errors might be ...")

    (row,) = run_tiny((Provider(name="broken", load=load),), seed)
    assert (row.status, row.reason) == ("failed", "RuntimeError: no kernel image is available")


@pytest.mark.parametrize(
    ("provider", "dtype", "direction", "reason"),
    [
        (PROVIDERS[-1], "float16", "forward", "does not run on cpu"),
        (on_cpu("original_extension"), "bfloat16", "forward", "does not take bfloat16"),
        (on_cpu("original_extension"), "float32", "forward", "cannot be imported: No module named"),
        (on_cpu("deformops"), "float32", "forward", "cannot be imported: No module named"),
        (on_cpu("torch_ms_deform_attn"), "float32", "forward", "cannot be imported: No module named"),
        (on_cpu("ours_compiled"), "float32", "backward", "compiled for one backward per forward"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_providers_that_cannot_run_give_the_reason(provider, dtype, direction, reason, monkeypatch, seed):
    for module in ("deformops.registry", "torch_ms_deform_attn"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    problem = prepare_operator(TINY, dtype, direction, "cpu", seed, (provider,))
    with pytest.raises(UnavailableError, match=reason):
        problem.candidates[provider.name]()


def test_selected_providers_are_measured_beside_the_baseline(seed):
    settings = Settings(device="cpu", rounds=3, seed=seed, providers=["ours"])
    rows = {row.provider: row for row in run_task(Task(TINY, "float32", "backward"), settings)}
    assert rows.keys() == {"ours", BASELINE}
    ours = rows["ours"]
    assert (ours.clock, ours.rounds) == ("wall", 3)
    assert ours.time.minimum <= ours.time.lower_quartile <= ours.time.median <= ours.time.upper_quartile
    assert rows[BASELINE].speedup.median == 1
    assert ours.speedup.median > 0
    # At least the gradients.
    assert ours.peak_bytes >= 4 * (2 * 26 * 16 + 2 * 7 * 4 * 2 * 2 * 3)
    assert list(prepare(Task(TINY, "float32", "forward"), "cpu", seed).candidates) == [each.name for each in PROVIDERS]


def from_level_tensors(value, shapes, starts, locations, weights, step=1):
    """Compute the operator, as the original's and other packages' functions take their arguments."""
    assert shapes.dtype == starts.dtype == torch.int64
    assert torch.equal(starts, shapes.prod(1).cumsum(0) - shapes.prod(1))
    assert len(value) % step == 0
    return ms_deform_attn(value, [tuple(shape) for shape in shapes.tolist()], locations, weights)


def in_one_dtype(value, shapes, starts, locations, weights):
    assert value.dtype == locations.dtype == weights.dtype
    return from_level_tensors(value, shapes, starts, locations, weights)


def original_backward(value, shapes, starts, locations, weights, grad_output, step):
    assert grad_output.is_contiguous()
    leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    with torch.enable_grad():
        output = from_level_tensors(leaves[0], shapes, starts, *leaves[1:], step)
    return torch.autograd.grad(output, leaves, grad_output)


def rziga_attention(img, img_shapes, sampling_points, attention_weights, padding_mode, align_corners):
    assert (padding_mode, align_corners) == ("zeros", False)
    assert img.dtype == sampling_points.dtype
    shapes = [tuple(shape) for shape in img_shapes.tolist()]
    return ms_deform_attn(img, shapes, sampling_points, attention_weights).unflatten(-1, img.shape[2:])


def flash_attention(value, shapes, starts, joined, step, points):
    assert joined.dtype == value.dtype
    locations, logits = joined.split([2 * 2 * points, 2 * points], dim=-1)
    weights = logits.softmax(-1).unflatten(-1, (2, points))
    return from_level_tensors(value, shapes, starts, locations.unflatten(-1, (2, points, 2)), weights, step)


# By provider: modules and their attributes.
STAND_INS = {
    "original_extension": {
        "MultiScaleDeformableAttention": {
            "ms_deform_attn_forward": from_level_tensors,
            "ms_deform_attn_backward": original_backward,
        }
    },
    "deformops": {"deformops": {}, "deformops.registry": {"msda": from_level_tensors}},
    "torch_ms_deform_attn": {"torch_ms_deform_attn": {"ms_deform_attn": in_one_dtype}},
    "msda_triton_rziga": {
        "msda_triton": {"multiscale_deformable_attention": None},
        "msda_triton.frontend": {"triton_multiscale_deformable_attention": rziga_attention},
    },
    "msda_triton_roulbac": {"msda_triton": {"multi_scale_deformable_attention": in_one_dtype}},
    "flash_deform_attn": {
        "DCNv4": {},
        "DCNv4.functions": {"FlashDeformAttnFunction": types.SimpleNamespace(apply=flash_attention)},
    },
}


@pytest.fixture
def install(monkeypatch):
    """Install a provider's stand-in."""

    def install(name: str) -> None:
        for module, attributes in STAND_INS[name].items():
            stand_in = types.ModuleType(module)
            vars(stand_in).update(attributes)
            monkeypatch.setitem(sys.modules, module, stand_in)

    return install


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_packages_are_called_with_the_arguments_they_take(name, dtype, install, seed):
    provider = on_cpu(name)
    if dtype not in provider.dtypes:
        dtype = provider.dtypes[0]
    install(name)
    problem = prepare_operator(TINY, dtype, "forward_backward", "cpu", seed, (provider,))
    assert error_of(problem, name) < 5e-3


@pytest.mark.parametrize(("installed", "other"), [("rziga", "roulbac"), ("roulbac", "rziga")])
def test_packages_of_the_same_name_are_told_apart(installed, other, install, seed):
    install(f"msda_triton_{installed}")
    provider = on_cpu(f"msda_triton_{other}")
    problem = prepare_operator(TINY, "float32", "forward", "cpu", seed, (provider,))
    with pytest.raises(UnavailableError, match="another package of this name"):
        problem.candidates[provider.name]()


def test_locations_and_softmax_are_computed_before_the_operator(seed):
    problem = prepare_operator(TINY, "float32", "forward_backward", "cpu", seed, (on_cpu("ours_from_offsets"),))
    assert error_of(problem, "ours_from_offsets") < problem.tolerance


@pytest.mark.compile
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_providers_agree(name, direction, seed):
    problem = prepare_operator(TINY, "float32", direction, "cpu", seed)
    assert error_of(problem, name) < problem.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
def test_ours_is_timed_in_a_graph_on_a_gpu(dtype, direction, seed):
    settings = Settings(device="cuda", rounds=2, seed=seed, providers=["ours", "ours_fused"])
    rows = {row.provider: row for row in run_task(Task(TINY, dtype, direction), settings)}
    assert rows["ours"].status == "measured", rows["ours"].reason
    assert rows["ours"].clock == "cuda_graph", rows["ours"].note
    assert rows["ours"].wall_time is not None
