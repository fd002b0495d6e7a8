"""Tasks of all kinds at tiny sizes: agreement before timing, turns, clocks and memory."""

import gc
import math
import sys
import types
from contextlib import contextmanager, nullcontext

import pytest
import torch
from benchmarks import accelerated, measure
from benchmarks.accelerated import prepare_accelerated
from benchmarks.cases import CASES, AccessSizes, Case, ModelSizes, OperatorSizes, Task, select, tasks
from benchmarks.matching import draw_predictions, match_plainly, plain_loss, prepare_criterion, prepare_matcher
from benchmarks.measure import DeviceClock, WallClock, interleave, peak_bytes
from benchmarks.model import build_ours, prepare_layers, prepare_model
from benchmarks.operator import prepare_operator
from benchmarks.problem import UnavailableError, largest_error
from benchmarks.providers import BASELINE, PROVIDERS, Provider
from benchmarks.runner import Settings, prepare, run_problem, run_task

from deformdetr.boxes import cxcywh_to_xyxy
from deformdetr.kernels import _layer_kernels, ms_deform_attn

TINY = Case("operator", "tiny", OperatorSizes(((4, 5), (2, 3)), 2, 7, heads=4, channels=4, points=2), ("forward",))
FORWARD = Task(TINY, "float32", "forward")


def error_of(problem, name):
    contender = problem.candidates[name]()
    error = largest_error(contender.outputs(), contender.expected())
    contender.call()
    return error


def run_tiny(providers, seed):
    problem = prepare_operator(TINY.sizes, "float32", "forward", "cpu", seed, providers)
    return run_problem(FORWARD, problem, Settings(rounds=1, seed=seed))


def test_cases_have_names_and_devices_and_patterns_select_them():
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)
    assert all(case.cpu or case.cuda for case in CASES)
    selected = select(["operator"], ["operator/dino_*", "encoder_480x640"])
    assert [str(task) for task in tasks(selected, "cpu")] == [
        f"operator/encoder_480x640_b1 float32 {direction}" for direction in ("forward", "forward_backward")
    ]
    assert {task.case.name for task in tasks(selected, "cuda")} == {
        "dino_encoder_800x1333_b4",
        "dino_decoder1100_800x1333_b4",
    }
    assert select(["matcher"], ["no such case"]) == []


@pytest.mark.parametrize(
    "case",
    [each for each in CASES if not isinstance(each.sizes, ModelSizes | AccessSizes)],
    ids=lambda case: f"{case.name}",
)
def test_implementations_agree_in_every_direction(case, seed):
    for direction in case.directions:
        problem = prepare(Task(case.quick(), "float32", direction), "cpu", seed)
        names = {"ours", "ours_fused", "ours_reference", "ours_layer", problem.baseline} & set(problem.candidates)
        for name in names:
            assert error_of(problem, name) < problem.tolerance, (name, direction)


def test_predicted_boxes_share_no_edge_with_their_targets(seed):
    sizes = select(["criterion"], ["many"])[0].sizes
    layers, targets = draw_predictions(sizes, "cpu", seed)
    for layer, matches in zip(layers, match_plainly(layers, [targets] * sizes.layers), strict=True):
        for boxes, target, (query, index) in zip(layer["pred_boxes"], targets, matches, strict=True):
            found, right = boxes[query], target["boxes"][index]
            edges = cxcywh_to_xyxy(found) - cxcywh_to_xyxy(right)
            assert torch.cat([edges, found - right]).abs().min() > 0.004


@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
def test_half_precision_agrees_within_its_tolerance(direction, seed):
    problem = prepare_operator(TINY.sizes, "bfloat16", direction, "cpu", seed)
    for name in ("ours", "grid_sample"):
        assert 1e-5 < error_of(problem, name) < problem.tolerance


@pytest.mark.compile
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("name", [name for name in PROVIDERS if name.endswith("_compiled")])
def test_compiled_implementations_agree(name, direction, seed):
    problem = prepare_operator(TINY.sizes, "float32", direction, "cpu", seed)
    assert error_of(problem, name) < problem.tolerance


@pytest.mark.parametrize("case", select(["model"], ["640x800"]), ids=lambda case: case.name)
def test_models_agree(case, seed):
    problem = prepare_model(case.quick().sizes, case.directions[-1], "cpu", seed)
    contender = problem.candidates["ours"]()
    expected = contender.expected()
    assert largest_error(contender.outputs(), expected) < problem.tolerance
    if "dc5" in case.name:
        with pytest.raises(UnavailableError, match="no dilated"):
            problem.candidates["hugging_face"]()
    else:
        assert error_of(problem, "hugging_face") < problem.tolerance
    if case.directions[-1] == "training_step":
        # The gradients of all trained parameters, by our names.
        assert expected.keys() >= {"loss", "backbone.layer2.0.conv1.weight", "class_heads.0.bias"}
        assert "backbone.conv1.weight" not in expected
        contender.call()
        assert contender.outputs()["loss"] != expected["loss"]


def test_models_are_timed_beside_matrix_products_unless_their_weights_differ(seed, monkeypatch):
    monkeypatch.setattr(measure, "PRODUCT_SIZES", {"cpu": (64,)})
    case = select(["model"], ["model/single_scale_640"])[0].quick()
    models = {"ours": lambda config, device, seed: build_ours(config, device, seed + 1), "hugging_face": build_ours}
    problem = prepare_model(case.sizes, "forward", "cpu", seed, models)
    wrong, right = run_problem(Task(case, "float32", "forward"), problem, Settings(rounds=1, seed=seed))
    assert (wrong.status, wrong.time, wrong.flops) == ("disagrees", None, None)
    assert right.status == "measured"
    assert right.flops > 1e8
    assert right.product_flops.keys() == {"float32", "bfloat16"}


def test_every_kernel_of_layers_is_left_out_once_and_the_selection_restored(seed):
    before = _layer_kernels._selected
    problem = prepare_layers(select(["layers"])[0].quick().sizes, "forward", "cpu", seed)
    left_out = ("channels_last", "chunks", "dropout", "linear", "any")
    assert list(problem.candidates) == ["ours", *(f"ours_without_{name}" for name in left_out)]
    assert error_of(problem, "ours_without_any") < problem.tolerance
    assert _layer_kernels._selected is before


class Model(torch.nn.Module):
    """Returns other numbers where it is accelerated."""

    def __init__(self, change=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))
        self.change, self.accelerated = change, False

    @contextmanager
    def accelerate(self):
        self.accelerated = True
        yield
        self.accelerated = False

    def forward(self, images):
        return {"logits": images * (self.weight + self.accelerated * self.change) ** 2, "other": None}


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_accelerated_models_are_timed_beside_the_same_models_unless_they_differ(direction, monkeypatch, seed):
    monkeypatch.setattr(accelerated, "accelerate", Model.accelerate)
    case = select(["accelerated"], ["RTDetr"])[0].quick()
    for change, status in ((0.0, "measured"), (0.5, "disagrees")):
        problem = prepare_accelerated(case.sizes, direction, "cpu", seed, lambda name, change=change: Model(change))
        ours, theirs = run_problem(Task(case, "float32", direction), problem, Settings(rounds=2))
        assert (ours.status, theirs.status, theirs.clock) == (status, "measured", "processor")


def test_selected_providers_are_measured_beside_the_baseline(seed):
    settings = Settings(rounds=3, seed=seed, providers=["ours"])
    ours, baseline = run_task(Task(TINY, "float32", "backward"), settings)
    assert [row.provider for row in (ours, baseline)] == ["ours", BASELINE]
    assert (ours.status, ours.clock, ours.rounds) == ("measured", "wall", 3)
    assert ours.time.minimum <= ours.time.lower_quartile <= ours.time.median <= ours.time.upper_quartile
    assert baseline.speedup.median == 1
    assert ours.speedup.median > 0
    # At least the gradients.
    assert ours.peak_bytes >= 4 * (2 * 26 * 16 + 2 * 7 * 4 * 2 * 2 * 3)


def test_a_wrong_provider_is_reported_with_its_error_and_not_timed(seed):
    baseline = PROVIDERS[BASELINE]
    wrong = Provider(lambda: lambda *given: 1.01 * baseline.load()(*given))
    wrong, right = run_tiny({"wrong": wrong, BASELINE: baseline}, seed)
    assert (wrong.status, wrong.time, wrong.speedup, wrong.rounds) == ("disagrees", None, None, 0)
    assert wrong.error == pytest.approx(0.01, rel=0.01)
    assert wrong.reason == "error 0.01 exceeds 0.0001"
    assert right.status == "measured"


def test_a_provider_with_only_its_gradient_wrong_disagrees(seed):
    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output):
            return output.clone()

        @staticmethod
        def backward(ctx, grad_output):
            return 1.01 * grad_output

    wrong = Provider(lambda: lambda *given: WrongBackward.apply(PROVIDERS["ours"].load()(*given)))
    errors = [
        error_of(prepare_operator(TINY.sizes, "float32", direction, "cpu", seed, {"wrong": wrong}), "wrong")
        for direction in ("forward", "forward_backward")
    ]
    assert errors[0] < 1e-5
    assert errors[1] == pytest.approx(0.01, rel=0.01)


def test_a_failing_provider_is_reported_with_its_error(seed):
    def load():
        raise RuntimeError("no kernel image is available\nCUDA kernel errors might be ...")

    (row,) = run_tiny({"broken": Provider(load)}, seed)
    assert (row.status, row.reason) == ("failed", "RuntimeError: no kernel image is available")


@pytest.mark.parametrize(
    ("name", "dtype", "direction", "reason"),
    [
        ("torch_ms_deform_attn", "bfloat16", "forward", "is not measured in bfloat16"),
        ("deformops", "float32", "forward", "cannot be imported"),
        ("ours_compiled", "float32", "backward", "compiled for one backward per forward"),
    ],
)
def test_providers_that_cannot_run_give_the_reason(name, dtype, direction, reason, monkeypatch, seed):
    monkeypatch.setitem(sys.modules, "deformops.registry", None)
    problem = prepare_operator(TINY.sizes, dtype, direction, "cpu", seed)
    with pytest.raises(UnavailableError, match=reason):
        problem.candidates[name]()


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [("deformops", "deformops.registry", "msda"), ("torch_ms_deform_attn", "torch_ms_deform_attn", "ms_deform_attn")],
)
def test_other_packages_are_called_with_the_arguments_they_take(name, module, function, monkeypatch, seed):
    def attend(value, shapes, starts, locations, weights):
        assert shapes.dtype == starts.dtype == torch.int64
        assert torch.equal(starts, shapes.prod(1).cumsum(0) - shapes.prod(1))
        return ms_deform_attn(value, [tuple(shape) for shape in shapes.tolist()], locations, weights)

    stand_in = types.ModuleType(module)
    setattr(stand_in, function, attend)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], stand_in)
    monkeypatch.setitem(sys.modules, module, stand_in)
    problem = prepare_operator(TINY.sizes, "float32", "forward_backward", "cpu", seed)
    assert error_of(problem, name) < problem.tolerance


def test_a_matcher_or_a_criterion_that_is_wrong_is_not_timed(seed):
    def shifted(layers, targets):
        return [[(query, index.roll(1)) for query, index in pairs] for pairs in match_plainly(layers, targets)]

    def forgetful(outputs, targets):
        loss = plain_loss({**outputs, "aux_outputs": []}, targets)
        return loss + 0 * sum(tensor.sum() for layer in outputs["aux_outputs"] for tensor in layer.values())

    for kind, make, function in (("matcher", prepare_matcher, shifted), ("criterion", prepare_criterion, forgetful)):
        case = select([kind], ["few_b2"])[0].quick()
        rows = run_problem(
            Task(case, "float32", "forward"), make(case.sizes, "cpu", seed, function), Settings(rounds=1)
        )
        assert [row.status for row in rows] == ["disagrees", "measured"], kind


@pytest.mark.parametrize(
    ("output", "expected", "error"),
    [
        # By the norm 0.1 / 5, by the largest element 0.1 / 4.
        ([3.1, 4.0], [3.0, 4.0], 0.025),
        ([1.5] * 4, [1.0] * 4, 0.5),
        ([1.0, math.nan], [1.0, 1.0], math.inf),
        ([1.0] * 3, [1.0] * 2, math.inf),
        ([0.25], [0.0], 0.25),
        ([], [], 0),
    ],
)
def test_error_is_the_larger_of_two_relative_errors_of_the_worst_tensor(output, expected, error):
    outputs = {"a": torch.tensor(output), "b": torch.ones(2)}
    assert largest_error(outputs, {"a": torch.tensor(expected), "b": torch.ones(2)}) == pytest.approx(error)
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['b'\]"):
        largest_error(outputs, {"b": torch.ones(2)})


def test_contenders_take_turns_in_random_order_without_garbage_collection():
    order, collecting = [], set()
    samples = {name: lambda name=name: order.append(name) or collecting.add(gc.isenabled()) or 1.0 for name in "abc"}
    times = interleave(samples, {"a": 40, "b": 40, "c": 38})
    rounds = ["".join(order[start : start + 3]) for start in range(0, 114, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    # At most two of the six orders in 38 rounds: once in 10^17 runs.
    assert len(set(rounds)) > 2
    assert sorted(order[114:]) == ["a", "a", "b", "b"]
    assert [len(taken) for taken in times.values()] == [40, 40, 38]
    assert collecting == {False}
    assert gc.isenabled()


def test_short_calls_are_repeated_until_the_clock_can_measure_them_and_slow_ones_are_not(monkeypatch):
    now = 0.0

    def call():
        nonlocal now
        now += 0.003

    monkeypatch.setattr(measure.benchmark, "timer", lambda: now)
    clock = WallClock(call)
    assert (clock.calls, clock.seconds) == (7, pytest.approx(0.021))
    assert clock.sample() == pytest.approx(0.003)
    before = now
    assert (WallClock(call, estimate=2.5).calls, now) == (1, before)


class FakeGPU:
    """Stand-ins for CUDA's graphs and events, with a clock that replays advance."""

    def __init__(self, seconds):
        self.seconds, self.captured, self.now = seconds, 0, 0.0

    def call(self):
        self.captured += 1

    def replay(self):
        self.now += self.seconds * self.captured

    def event(self, **options):
        event = types.SimpleNamespace(elapsed_time=lambda end: (end.time - event.time) * 1e3, synchronize=lambda: None)
        event.record = lambda: setattr(event, "time", self.now)
        return event


def test_replays_on_a_gpu_are_timed_by_its_own_clock(monkeypatch):
    gpu = FakeGPU(30e-6)
    stand_ins = {"CUDAGraph": lambda: gpu, "Event": gpu.event}
    stand_ins |= {"graph": lambda graph, stream: nullcontext(), "current_stream": lambda: None}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    clock = DeviceClock(gpu.call)
    # As many replays of twenty calls as last a fiftieth of a second.
    assert clock.calls == 680
    assert clock.sample() == pytest.approx(30e-6)


def test_peak_memory_counts_tensors_alive_at_once_also_inside_of_operations():
    given = torch.ones(1000, 1000)

    def call():
        first = given + 1
        second = first * 2
        del first
        third = second + second
        del second
        return third.sum()

    assert peak_bytes(call, "cpu") == pytest.approx(2 * given.nbytes, rel=0.01)
    matrix = torch.randn(300, 300)
    # The operation works on a copy of its input.
    assert peak_bytes(lambda: torch.linalg.svdvals(matrix), "cpu") > matrix.nbytes


@pytest.mark.gpu
def test_a_copy_on_a_gpu_has_a_plausible_bandwidth():
    source = torch.randn(2**26, device="cuda")
    target = torch.empty_like(source)
    with torch.cuda.stream(torch.cuda.Stream()):
        target.copy_(source)
        clock = DeviceClock(lambda: target.copy_(source))
        bandwidth = 2 * 4 * len(source) / clock.sample()
    assert 1e11 < bandwidth < 2e13


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
def test_ours_is_timed_in_a_graph_on_a_gpu(dtype, direction, seed):
    settings = Settings("cuda", rounds=2, seed=seed, providers=["ours", "ours_fused"])
    for row in run_task(Task(TINY, dtype, direction), settings):
        assert (row.status, row.clock) == ("measured", "cuda_graph"), row.reason


def test_a_provider_of_one_dtype_gets_rounded_locations_and_one_of_half_sums_a_tolerance_of_its_own(seed):
    def attend(given, levels):
        assert given["sampling_locations"].dtype == torch.bfloat16
        return PROVIDERS["ours"].load()(given, levels)

    provider = Provider(lambda: attend, mixes_dtypes=False, half_sums=True)
    for direction, is_wider in (("forward", False), ("forward_backward", True)):
        problem = prepare_operator(TINY.sizes, "bfloat16", direction, "cpu", seed, {"theirs": provider})
        contender = problem.candidates["theirs"]()
        assert (contender.tolerance is not None) == is_wider
        tolerance = contender.tolerance or problem.tolerance
        assert largest_error(contender.outputs(), contender.expected()) < tolerance
        (row,) = run_problem(FORWARD, problem, Settings(rounds=1, seed=seed))
        assert (row.status, row.tolerance) == ("measured", tolerance)
