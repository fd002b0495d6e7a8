"""ONNX files with the node of TensorRT's plugin, evaluated without TensorRT."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints import tiny_config
from deformdetr.integrations._export import _onnx, _tensorrt
from deformdetr.integrations.export import ExportError, decompositions, export_onnx
from deformdetr.nn import MSDeformAttn
from deformdetr.testing import random_inputs

SHAPES = [(9, 7), (4, 4), (1, 3)]


class Sampler(nn.Module):
    """The smallest model with deformable attention over two levels of an image and its padding."""

    def __init__(self, n_points: int | tuple[int, int]) -> None:
        super().__init__()
        self.query = nn.Embedding(5, 8)
        self.attention = MSDeformAttn(d_model=8, n_levels=2, n_heads=2, n_points=n_points)
        nn.init.normal_(self.attention.sampling_offsets.weight)
        nn.init.normal_(self.attention.attention_weights.weight)

    def forward(self, images: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        maps = [F.avg_pool2d(images, stride) for stride in (8, 16)]
        masks = [F.max_pool2d(padding_mask[:, None].float(), stride) > 0 for stride in (8, 16)]
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        features = F.pad(torch.cat([level.flatten(2) for level in maps], dim=2), (0, 0, 0, 5)).transpose(1, 2)
        mask = torch.cat([level.flatten(1) for level in masks], dim=1)
        query = self.query.weight.expand(len(images), -1, -1)
        references = query[:, :, None, :2].sigmoid().expand(-1, -1, 2, -1)
        out = self.attention(query, references, features, shapes, None, mask)
        return {"pred_logits": out, "pred_boxes": out[..., :4].sigmoid()}


def nodes_of(content):
    return [node for node in content.graph.node if node.domain == "trt.plugins"]


@pytest.mark.compile
@pytest.mark.parametrize(("n_points", "levels", "points", "version"), [(4, 2, 4, "2"), ((2, 4), 3, 2, "1")])
def test_node_is_what_the_plugin_takes(n_points, levels, points, version, tmp_path, rng, monkeypatch):
    import onnx

    path = tmp_path / "model.onnx"
    images = [torch.randn(3, 96, 128, generator=rng)]
    report = export_onnx(Sampler(n_points), path, sampling=f"tensorrt_v{version}", images=images)
    assert len(report.comparisons) == 3
    assert all(each.is_within(1e-5) for each in report.comparisons)

    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    assert {each.domain: each.version for each in content.opset_import} == {"": 18, "trt.plugins": 1}
    (node,) = (node for node in content.graph.node if node.domain)
    assert node.op_type == "MultiscaleDeformableAttnPlugin_TRT"
    attributes = {each.name: each.s.decode() for each in node.attribute}
    assert attributes == {"plugin_version": version, "plugin_namespace": ""}
    inferred = onnx.shape_inference.infer_shapes(content, strict_mode=True, data_prop=True)
    known = {each.name: each.type.tensor_type for each in inferred.graph.value_info}
    types = [known[name].elem_type for name in (*node.input, *node.output)]
    float32, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    assert types == [float32, int32, int32, float32, float32, float32]
    shapes = [[axis.dim_value for axis in known[name].shape.dim] for name in (*node.input, *node.output)]
    # 0 stands for the batch and the pixels. Every group of points has a level, and levels of several groups repeat.
    assert shapes == [
        [0, 0, 2, 4],
        [levels, 2],
        [levels],
        [0, 5, 2, levels, points, 2],
        [0, 5, 2, levels, points],
        [0, 5, 2, 4],
    ]

    # The comparison tells models apart.
    monkeypatch.setattr(_onnx, "_translate", lambda *_: content)
    with pytest.raises(ExportError, match="differs from the model"):
        export_onnx(Sampler(n_points), path, sampling=f"tensorrt_v{version}", images=images, overwrite=True)


@pytest.mark.parametrize("where", [0.0, 0.4, torch.nan, torch.inf, -torch.inf, 1e30])
def test_evaluated_node_computes_what_the_operator_does(where, rng):
    value, locations, weights = random_inputs(rng, SHAPES)
    locations[:, 3] += where
    starts = torch.tensor([0, 63, 79], dtype=torch.int32)
    arrays = [each.numpy() for each in (value, torch.tensor(SHAPES, dtype=torch.int32), starts, locations, weights)]
    (got,) = _tensorrt._run_node(None, *arrays, plugin_version="2", plugin_namespace="")
    sides = [side for shape in SHAPES for side in shape]
    form = decompositions("grid_sample")[torch.ops.deformdetr.ms_deform_attn.default]
    expected = form(value, None, sides, [], locations, weights, None, None, False)
    assert got.shape == (*weights.shape[:3], value.shape[3])
    torch.testing.assert_close(torch.from_numpy(got).flatten(2), expected)


def test_unknown_sampling_raises_before_anything_is_done(tmp_path):
    with pytest.raises(ValueError, match="one of grid_sample, gather, tensorrt_v1, tensorrt_v2; got 'tensorrt'"):
        inspect.unwrap(export_onnx)(nn.Identity(), tmp_path / "model.onnx", sampling="tensorrt")


@pytest.mark.slow
@pytest.mark.compile
def test_file_of_a_detector_computes_what_the_detector_does(tmp_path, rng):
    config = tiny_config(num_encoder_layers=1, num_decoder_layers=1, num_feature_levels=1)
    report = export_onnx(
        config.build(),
        tmp_path / "model.onnx",
        sampling="tensorrt_v2",
        opset=17,
        postprocess=config.build_postprocess(),
        images=[torch.randn(3, 90, 120, generator=rng)],
    )
    assert all(each.is_within(1e-4) for each in report.comparisons)
