"""Detectors as exported programs and ONNX files."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from checkpoints import tiny_config, tiny_detr_config
from deformdetr.config import ResNetConfig
from deformdetr.integrations._export import _onnx, _program
from deformdetr.integrations._export._check import Comparison, FileOutputs, compare
from deformdetr.integrations.export import ExportError, decompositions, export_onnx, export_program
from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn
from deformdetr.models import SigmoidPostProcess, SoftmaxPostProcess
from deformdetr.nn import DeformableAttention2d, MSDeformAttn
from deformdetr.nn._window_attention import WindowAttention
from deformdetr.structures import ImageBatch
from deformdetr.testing import TOLERANCES, random_inputs
from sampling import assert_close

SHAPES = [(9, 7), (4, 4), (1, 1), (1, 3)]
FLAT = [side for shape in SHAPES for side in shape]
# Formulas of sizes grow with every level, and the time that tracing takes with them.
SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 1}
VARIANTS = {
    "single_scale": tiny_config(**SMALL, num_feature_levels=1),
    "resnet": tiny_config(**SMALL, num_feature_levels=1, backbone=ResNetConfig(name="resnet18")),
    "two_stage": tiny_config(**SMALL, num_feature_levels=2, with_box_refine=True, two_stage=True),
    "detr": tiny_detr_config(**SMALL),
    "masks": tiny_detr_config(**SMALL, masks=True),
}


def built(variant: str) -> nn.Module:
    """Build a model whose queries look elsewhere than at first, each somewhere else."""
    model = VARIANTS[variant].build()
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.5)
            nn.init.normal_(module.attention_weights.weight, std=0.5)
    return model


def padded_batch(rng: torch.Generator, *sizes: tuple[int, int]) -> ImageBatch:
    return ImageBatch.from_images([torch.randn(3, *size, generator=rng) for size in sizes])


def operator_form(sampling):
    return decompositions(sampling)[torch.ops.deformdetr.ms_deform_attn.default]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_forms_compute_what_the_operator_does(sampling, dtype, rng):
    value, locations, weights = random_inputs(rng, SHAPES)
    value = value.to(dtype)
    got = operator_form(sampling)(value, None, FLAT, [], locations, weights, None, None, False)
    assert got.dtype == dtype
    assert_close(got, ms_deform_attn(value.double(), SHAPES, locations, weights, "reference"), TOLERANCES[dtype])


@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_locations_that_are_nowhere_give_zero(sampling, rng):
    value, locations, weights = random_inputs(rng, SHAPES)
    for query, number in enumerate([torch.nan, torch.inf, -torch.inf, 1e30, -1e30]):
        locations[:, query, :, :, 0, query % 2] = number
    expected = ms_deform_attn(value, SHAPES, locations, weights, "reference")
    got = operator_form(sampling)(value, None, FLAT, [], locations, weights, None, None, False)
    torch.testing.assert_close(got, expected)
    locations[:] = torch.nan
    assert not operator_form(sampling)(value, None, FLAT, [], locations, weights, None, None, False).any()


@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_what_is_stored_elsewhere_does_not_matter(sampling, rng):
    value, locations, weights = random_inputs(rng, SHAPES[:1])
    locations = locations.clamp(0.6, 0.9)
    expected = operator_form(sampling)(value, None, FLAT[:2], [], locations, weights, None, None, False)
    value[:, 0] = torch.nan
    locations[:, 0] = 7.0
    got = operator_form(sampling)(value, None, FLAT[:2], [], locations, weights, None, None, False)
    torch.testing.assert_close(got[:, 1:], expected[:, 1:])
    assert not got[:, 0].any()


@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_levels_may_differ_in_their_points(sampling, rng):
    value, locations, weights = random_inputs(rng, SHAPES[:2])
    locations, weights = locations[:, :, :, [0, 0, 1]], weights[:, :, :, [0, 1, 1]]
    expected = ms_deform_attn(
        value, SHAPES[:2], locations.flatten(3, 4), weights.flatten(3), "reference", points_per_level=[6, 3]
    )
    got = operator_form(sampling)(value, None, FLAT[:4], [2, 1], locations, weights, None, None, False)
    torch.testing.assert_close(got, expected)


def test_gathering_takes_shapes_in_a_tensor_and_sampling_grids_does_not(rng):
    inputs = random_inputs(rng, SHAPES)
    expected = ms_deform_attn(inputs[0], SHAPES, *inputs[1:], "reference")
    shapes = torch.tensor(SHAPES)
    got = operator_form("gather")(inputs[0], shapes, [], [], *inputs[1:], None, None, False)
    torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="spatial_shapes as ints, got a tensor"):
        operator_form("grid_sample")(inputs[0], shapes, [], [], *inputs[1:], None, None, False)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_fused_operator_has_forms_too(sampling, coordinates, rng):
    value, offsets, logits = random_inputs(rng, SHAPES)
    references = torch.rand(2, 7, 4, coordinates, generator=rng, dtype=torch.float64)
    mask = torch.rand(value.shape[:2], generator=rng) < 0.3
    expected = fused_ms_deform_attn(value, SHAPES, references, offsets, logits, mask, backend="reference")
    got = operator_form(sampling)(value, None, FLAT, [], offsets, logits, references, mask, False)
    torch.testing.assert_close(got, expected)


def test_unknown_sampling_raises():
    with pytest.raises(ValueError, match="must be one of grid_sample, gather; got 'bilinear'"):
        inspect.unwrap(decompositions)("bilinear")


def run_of(model, postprocess=None, change=lambda tensors, choices: None):
    """Return a replacement of a file: the model itself, whose outputs and selections can be changed."""

    def run(inputs):
        seen = []

        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                if func in (torch.topk, Tensor.topk):
                    seen.append(result.indices)
                return result

        with torch.no_grad(), Watch():
            outputs = model(inputs["images"], inputs["padding_mask"])
            names = ("pred_logits", "pred_boxes", "pred_masks")
            tensors = {name: outputs[name].clone() for name in names if name in outputs}
            if postprocess is not None:
                logits = tensors.pop("pred_masks", None)
                found = postprocess({name: outputs[name] for name in tensors}, inputs["image_sizes"])
                tensors |= {name: torch.stack([each[name] for each in found]) for name in found[0]}
                if logits is not None:
                    # Of the softmax, which keeps the order of the queries.
                    tensors["masks"] = logits.sigmoid()
        change(tensors, seen)
        return FileOutputs(tensors, seen)

    return run


@pytest.mark.parametrize(
    "postprocess", [SigmoidPostProcess(top_k=20), SoftmaxPostProcess()], ids=["sigmoid", "softmax"]
)
def test_a_model_does_not_differ_from_itself(postprocess, rng):
    model = built("two_stage").eval()
    batch = padded_batch(rng, (64, 96), (80, 50))
    found = compare(model, run_of(model, postprocess), batch, postprocess=postprocess)
    assert (found.images, found.height, found.width) == (2, 80, 96)
    assert found.is_within(1e-6)
    assert found.detections is not None


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes", "boxes", "scores", "labels"])
def test_any_other_number_is_a_difference(name, rng):
    def change(tensors, choices):
        tensors[name][1, 3] += 1

    model, postprocess = built("detr").eval(), SoftmaxPostProcess()
    batch = padded_batch(rng, (64, 96), (80, 50))
    found = compare(model, run_of(model, postprocess, change), batch, postprocess=postprocess)
    assert not found.is_within(1e-3)


@pytest.mark.parametrize(("postprocess", "name"), [(SoftmaxPostProcess(), "masks"), (None, "pred_masks")])
def test_other_masks_are_a_difference(postprocess, name, rng):
    def change(tensors, choices):
        tensors[name][1, 3, 5, 5] += 0.01

    model, batch = built("masks").eval(), padded_batch(rng, (64, 96), (80, 50))
    same = compare(model, run_of(model, postprocess), batch, postprocess=postprocess)
    assert same.is_within(1e-6)
    found = compare(model, run_of(model, postprocess, change), batch, postprocess=postprocess)
    assert found.masks == pytest.approx(0.01, abs=1e-5)
    assert not found.is_within(1e-3)
    assert "masks 0.01" in str(found)


def test_masks_of_detections_are_those_of_their_queries(rng):
    model = tiny_config(**SMALL, num_feature_levels=2, masks=True).build().eval()
    postprocess = SigmoidPostProcess(top_k=20)
    batch = padded_batch(rng, (64, 96), (64, 96))
    # At the size of the masks nothing is enlarged.
    size = (16, 24)
    with torch.no_grad():
        detections = postprocess(model(*batch), [size, size])
        masks = _program._Deployed(model, postprocess)(*batch, torch.tensor([size, size]))["masks"]
    assert len(masks[0].unique(dim=0)) > 1
    for got, wanted in zip(masks, detections, strict=True):
        torch.testing.assert_close(got, wanted["masks"][:, 0], rtol=1e-4, atol=1e-5)


def test_proposals_are_compared_as_the_file_has_chosen_them(rng):
    model = built("two_stage").eval()
    nn.init.zeros_(model.queries.class_head.weight)  # All proposals are equally good.
    batch = padded_batch(rng, (64, 96))
    other = built("two_stage").eval()
    other.load_state_dict(model.state_dict())
    last = torch.arange(model.queries.num_queries).flip(0)[None]

    def choose(scores, k):
        return torch.return_types.topk((scores.gather(1, last), last))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "topk", lambda scores, k, dim: choose(scores, k))
        with torch.no_grad():
            outputs = other(*batch)
    tensors = {name: outputs[name] for name in ("pred_logits", "pred_boxes")}
    assert compare(model, lambda inputs: FileOutputs(tensors, [last]), batch, postprocess=None).is_within(1e-5)


def test_a_choice_of_worse_proposals_is_a_difference(rng):
    def change(tensors, choices):
        # Maps of 4 x 6 and 2 x 3 pixels.
        choices[0] = (choices[0] + 1) % 30

    model = built("two_stage").eval()
    nn.init.normal_(model.queries.class_head.weight, std=3)
    assert not compare(model, run_of(model, change=change), padded_batch(rng, (64, 96)), postprocess=None).is_within(
        1e-3
    )


def test_choosing_another_number_of_times_raises(rng):
    model, batch = built("two_stage").eval(), padded_batch(rng, (64, 96))
    with pytest.raises(ExportError, match="1 top-k more"):
        compare(model, run_of(model, change=lambda _, seen: seen.append(seen[0])), batch, postprocess=None)
    with pytest.raises(ExportError, match="fewer top-k"):
        compare(model, run_of(model, change=lambda _, seen: seen.clear()), batch, postprocess=None)


def test_nan_is_larger_than_any_tolerance():
    numbers = {"images": 1, "height": 64, "width": 96, "boxes": 0.0, "detections": None}
    assert Comparison(logits=0.5, **numbers).is_within(1.0)
    assert not Comparison(logits=float("nan"), **numbers).is_within(1.0)


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("model.pt", {}, ValueError, "must end in .onnx"),
        ("none/model.onnx", {}, FileNotFoundError, "no folder"),
        ("there.onnx", {}, FileExistsError, "exists already; overwrite=True, or --force"),
        ("folder.onnx", {"overwrite": True}, FileExistsError, "is a folder"),
        ("model.onnx", {"opset": 16}, ValueError, "opset must be 17 or newer, got 16"),
        ("model.onnx", {"images": []}, ValueError, "at least one image"),
    ],
)
def test_arguments_are_checked_before_anything_is_done(tmp_path, name, settings, error, message):
    (tmp_path / "there.onnx").write_text("precious")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(error, match=message):
        export_onnx(nn.Identity(), tmp_path / name, **settings)
    assert (tmp_path / "there.onnx").read_text() == "precious"


def test_missing_packages_are_named_with_the_extra(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r'needs onnxscript: pip install "deformdetr\[onnx\]"'):
        export_onnx(nn.Identity(), tmp_path / "model.onnx")


@pytest.mark.compile
def test_exported_program_serves_other_sizes_with_and_without_the_operator(rng):
    model = built("two_stage").train()
    postprocess = SigmoidPostProcess(top_k=20)
    program = export_program(model, postprocess=postprocess)
    assert model.training
    lowered = program.run_decompositions(decompositions("gather"))
    operator = torch.ops.deformdetr.ms_deform_attn.default
    assert [any(node.target is operator for node in each.graph.nodes) for each in (program, lowered)] == [True, False]
    model.eval()
    for sizes in ([(70, 131)], [(96, 150), (128, 80), (66, 66)]):
        batch = padded_batch(rng, *sizes)
        with torch.no_grad():
            expected = model(*batch)
            detections = postprocess(expected, sizes)
            results = [each.module()(*batch, torch.tensor(sizes)) for each in (program, lowered)]
        for got in results:
            torch.testing.assert_close(got["pred_logits"], expected["pred_logits"], rtol=1e-4, atol=1e-4)
            for index, wanted in enumerate(detections):
                for name, tensor in wanted.items():
                    torch.testing.assert_close(got[name][index], tensor, rtol=1e-4, atol=1e-3)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("variant", "sampling", "opset"),
    [("resnet", "gather", 18), ("two_stage", "grid_sample", 25), ("masks", "grid_sample", 17)],
)
def test_onnx_file_computes_what_the_model_does(variant, sampling, opset, tmp_path, rng):
    import onnx

    model, path = built(variant), tmp_path / "model.onnx"
    # The smaller copy ends where a feature map of stride 16 has a pixel, at which rounding decides about padding.
    images = [torch.randn(3, 90, 120, generator=rng)]
    report = export_onnx(
        model,
        path,
        sampling=sampling,
        opset=opset,
        postprocess=VARIANTS[variant].build_postprocess(),
        images=images,
        metadata={"names": "[]"},
    )
    assert model.training
    assert [(each.images, each.height, each.width) for each in report.comparisons] == [
        (1, 90, 120),
        (1, 68, 75),
        (2, 90, 120),
    ]
    assert all(each.is_within(1e-4) for each in report.comparisons)
    content = onnx.load(path)
    assert {each.domain: each.version for each in content.opset_import}[""] == opset
    assert {node.domain for node in content.graph.node} <= {"", "ai.onnx"}
    assert any(node.op_type == "GridSample" for node in content.graph.node) == (
        sampling == "grid_sample" and variant != "masks"
    )
    axes = [axis.dim_param or axis.dim_value for axis in content.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    names = ["pred_logits", "pred_boxes", "boxes", "scores", "labels", *(["masks"] if variant == "masks" else [])]
    assert [each.name for each in content.graph.output] == names
    assert content.metadata_props[0].key == "names"
    assert list(tmp_path.iterdir()) == [path]
    # A file that is published tells nobody where its author keeps the sources.
    assert str(Path(_onnx.__file__).parents[2]).encode() not in path.read_bytes()

    # What is written for one model is wrong for another, and is not kept.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_onnx, "_translate", lambda *_: content)
        with pytest.raises(ExportError, match=r"differs from the model by more than 0\.001, and is not kept"):
            export_onnx(
                built(variant), path, postprocess=VARIANTS[variant].build_postprocess(), images=images, overwrite=True
            )
    assert list(tmp_path.iterdir()) == [path]
    assert onnx.load(path) == content


@pytest.mark.slow
@pytest.mark.compile
def test_attention_of_dat_computes_the_same_in_onnx(tmp_path, rng):
    import onnxruntime

    layers = [WindowAttention(16, 2, window_size=3, shift=2), DeformableAttention2d(16, 2, 2, map_size=8)]
    model, path = nn.Sequential(*layers).eval(), tmp_path / "attention.onnx"
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 16, 9, 11),), dynamic_shapes=dynamic, strict=True)
    program = program.run_decompositions(decompositions("gather"))
    torch.onnx.export(program, (), path, input_names=["x"], output_names=["y"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for size in ((2, 16, 9, 11), (1, 16, 3, 3), (3, 16, 2, 5)):
        x = torch.randn(size, generator=rng)
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_operators_without_an_older_form_raise():
    import onnx

    node = onnx.helper.make_node("BitwiseAnd", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "graph", [], [])
    with pytest.raises(ExportError, match="BitwiseAnd of the exported graph has no form in opset 17"):
        _onnx._write_as_opset_17(graph)


@pytest.mark.slow
@pytest.mark.compile
def test_ahead_of_time_compiled_package_serves_other_sizes(tmp_path, rng):
    model = built("single_scale").eval()
    package = torch._inductor.aoti_compile_and_package(export_program(model), package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(package)
    for sizes in ([(70, 131)], [(96, 150), (128, 80), (66, 66)]):
        batch = padded_batch(rng, *sizes)
        with torch.no_grad():
            expected = model(*batch)
        got = run(*batch)
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.compile
def test_ahead_of_time_compiled_layer_needs_no_operator(tmp_path, rng):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = MSDeformAttn(16, 2, 2, 4)

        def forward(self, query, points, value):
            return self.layer(query, points, value, SHAPES[:2])

    layer = Attention()
    nn.init.normal_(layer.layer.sampling_offsets.weight, std=0.5)
    inputs = torch.randn(5, 6, 16), torch.rand(5, 6, 2, 2), torch.randn(5, 79, 16)
    dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    with torch.no_grad():
        program = torch.export.export(layer, inputs, dynamic_shapes=dynamic, strict=True)
    program = program.run_decompositions(decompositions("gather"))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
    run = torch._inductor.aoti_load_package(package)
    for batch, queries in ((2, 9), (3, 4)):
        query, value = (torch.randn(batch, length, 16, generator=rng) for length in (queries, 79))
        points = torch.rand(batch, queries, 2, 2, generator=rng)
        torch.testing.assert_close(run(query, points, value), layer(query, points, value).detach())
