"""The attention layer with discrete sampling."""

from pathlib import Path

import pytest
import torch

from deformdetr.nn import MSDeformAttn
from random_weights import redrawn

SHAPES = [(6, 6), (3, 3)]
PIXELS = 45


def _layer(rng, **changes):
    """Build a layer whose offsets and attention depend on the query."""
    return redrawn(MSDeformAttn(32, 2, 4, method="discrete", **changes), rng)


def _inputs(rng):
    query, features = torch.randn(2, 7, 32, generator=rng), torch.randn(2, PIXELS, 32, generator=rng)
    return query, torch.rand(2, 7, 1, 4, generator=rng), features


def test_attention_of_rt_detrv2_is_the_layer(rng):
    from transformers.models.rt_detr_v2.configuration_rt_detr_v2 import RTDetrV2Config
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2MultiscaleDeformableAttention

    ours = _layer(rng)
    config = RTDetrV2Config(d_model=32, decoder_attention_heads=4, decoder_n_levels=2, decoder_method="discrete")
    theirs = RTDetrV2MultiscaleDeformableAttention(config)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    query, reference, features = _inputs(rng)
    mask = torch.rand(2, PIXELS, generator=rng) < 0.3
    expected, _ = theirs(
        query,
        attention_mask=~mask,
        reference_points=reference,
        encoder_hidden_states=features,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
    )
    found = ours(query, reference, features, SHAPES, input_padding_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_offsets_are_frozen_and_all_else_learns(rng):
    layer = _layer(rng, n_points=(1, 3))
    layer(*_inputs(rng), SHAPES).sum().backward()
    without = {name for name, parameter in layer.named_parameters() if parameter.grad is None}
    frozen = {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}
    assert without == frozen == {"sampling_offsets.weight", "sampling_offsets.bias"}
    assert MSDeformAttn(32, 2, 4).sampling_offsets.weight.requires_grad


def test_printed_layer_names_the_method():
    assert repr(MSDeformAttn(32, 2, 4, method="discrete")).count("n_points=4, method=discrete") == 1
    assert "method" not in repr(MSDeformAttn(32, 2, 4))


@pytest.mark.unchecked
def test_other_methods_are_refused():
    with pytest.raises(ValueError, match="method must be one of bilinear, discrete; got 'nearest'"):
        MSDeformAttn(32, 2, 4, method="nearest")


@pytest.mark.compile
def test_compiled_layer_is_one_graph(rng):
    torch.compiler.reset()
    layer, inputs = _layer(rng), _inputs(rng)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, SHAPES), layer(*inputs, SHAPES))


@pytest.mark.slow
@pytest.mark.compile
def test_onnx_file_gathers_and_samples_no_grid(rng, tmp_path: Path):
    import onnx
    import onnxruntime

    class Attend(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = _layer(rng)

        def forward(self, query, reference, features):
            return self.layer(query, reference, features, SHAPES)

    model, inputs, path = Attend().eval(), _inputs(rng), tmp_path / "layer.onnx"
    torch.onnx.export(model, inputs, path, dynamo=True, input_names=["query", "reference", "features"])
    nodes = {node.op_type for node in onnx.load(path).graph.node}
    assert "Gather" in nodes
    assert not nodes & {"GridSample", "GatherND", "ScatterND", "Loop"}
    names = ("query", "reference", "features")
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), model(*inputs).detach(), rtol=1e-4, atol=1e-5)
