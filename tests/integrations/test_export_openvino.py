"""ONNX files in OpenVINO, compared with the model as those in onnxruntime are."""

import importlib.util

import pytest
import torch
from torch import nn

from checkpoints import tiny_config
from deformdetr.integrations._export._check import FileOutputs, check_batches, compare
from deformdetr.integrations.export import export_onnx
from deformdetr.nn import MSDeformAttn


@pytest.mark.compile
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the package `openvino` is not installed")
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_openvino_computes_what_the_model_does(sampling, tmp_path, rng):
    import openvino

    model = tiny_config(num_encoder_layers=1, num_decoder_layers=1, num_feature_levels=1).build().eval()
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.5)
            nn.init.normal_(module.attention_weights.weight, std=0.5)
    images = [torch.randn(3, 90, 120, generator=rng)]
    export_onnx(model, tmp_path / "model.onnx", sampling=sampling, images=images)
    # By default, some processors compute in bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU", settings)

    def run(inputs):
        outputs = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return FileOutputs({name: torch.from_numpy(outputs[name].copy()) for name in ("pred_logits", "pred_boxes")}, [])

    for batch in check_batches(images):
        assert compare(model, run, batch, postprocess=None).is_within(1e-4)
