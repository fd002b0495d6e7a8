"""Shapes, parameters, operations and memory of models."""

import json
from pathlib import Path

import pytest
import torch

from deformdetr import PRESETS, preset
from deformdetr.engine import summarize
from deformdetr.engine._summary import _kept_bytes

COUNTS = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "flops.json").read_text())["counts"]


@pytest.mark.parametrize("name", ["deformable_detr_r50_two_stage", "detr_r50_dc5"])
def test_counts_are_those_of_the_table_in_the_documentation(name: str) -> None:
    summary = summarize(preset(name), (800, 1200))
    expected = COUNTS[name]["800x1200"]
    assert (summary.parameters, summary.trainable) == (expected["parameters"], expected["trainable"])
    assert summary.multiply_adds == expected["total"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_parts_add_up_to_the_model(name: str) -> None:
    # One layer counts as any other.
    small = {"backbone": {"kind": "conv"}, "num_encoder_layers": 1, "num_decoder_layers": 2}
    summary = summarize(preset(name).replace(**small), (128, 160))
    # The embeddings of levels and queries belong to the model itself or are parts of their own.
    assert sum(stage.parameters for stage in summary.stages) == pytest.approx(summary.parameters, rel=0.01)
    assert sum(stage.multiply_adds for stage in summary.stages) == summary.multiply_adds
    assert summary.activation_bytes > 0
    assert summary.stages[0].output[-1][-2:] == (4, 5)
    assert all(stage.name in summary.table() for stage in summary.stages)


def test_kept_activations_are_those_of_a_real_forward_pass() -> None:
    config = preset("demo")
    summary = summarize(config, (96, 128))
    real = _kept_bytes(config.build().eval(), torch.rand(1, 3, 96, 128))
    # Kernels of CPUs keep other intermediate results than the meta device.
    assert summary.activation_bytes == pytest.approx(real, rel=0.15)


def test_pretrained_weights_are_not_loaded() -> None:
    config = preset("detr_r50").replace(backbone={"kind": "resnet", "name": "resnet50", "weights": "no_such_file.pth"})
    assert summarize(config, (64, 64)).parameters > 4e7


def test_sizes_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be positive, got 0 x 5"):
        summarize(preset("demo"), (0, 5))


@pytest.mark.unchecked
@pytest.mark.parametrize("size", [(800.5, 600), (800.0, 600), ("800", 600), (800,), (800, 600, 3)])
def test_sides_that_are_no_two_integers_are_refused(size: object) -> None:
    with pytest.raises(TypeError, match="size must be a height and a width in whole pixels, got"):
        summarize(preset("demo"), size)
