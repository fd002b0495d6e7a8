"""Presets: their number of parameters and their differences."""

import pytest
import torch
from torch import nn

from checkpoints import tiny_detr_config
from deformdetr import preset
from deformdetr.config import ResNetConfig
from deformdetr.losses import FocalClassification
from deformdetr.models import SigmoidPostProcess


@pytest.mark.parametrize(
    ("name", "millions"), [("detr_r50", 41), ("detr_r50_dc5", 41), ("detr_r101", 60), ("detr_r101_dc5", 60)]
)
def test_detr_has_the_published_number_of_parameters(name, millions):
    with torch.device("meta"):
        model = preset(name).build()
    assert sum(parameter.numel() for parameter in model.parameters()) // 10**6 == millions


@pytest.mark.parametrize("name", ["detr_r50_dc5", "detr_r101_dc5", "detr_r50_dc5_plus"])
def test_dilated_variants_keep_stride_sixteen(name):
    with torch.device("meta"):
        assert preset(name).build().backbone.strides == (16,)


def test_detr_dc5_plus_is_detr_dc5_with_focal_loss_and_three_hundred_queries():
    """Zhu et al., "Deformable DETR", ICLR 2021, table 1."""
    config = preset("detr_r50_dc5_plus")
    assert config.replace(num_queries=100, criterion=preset("detr_r50_dc5").criterion) == preset("detr_r50_dc5")
    assert config.num_queries == 300
    assert isinstance(config.build_postprocess(), SigmoidPostProcess)
    criterion = config.build_criterion()
    assert isinstance(criterion.classification, FocalClassification)
    assert criterion.weights == {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}


def test_focal_loss_trains_detr_without_a_logit_for_no_object(rng):
    config = tiny_detr_config(criterion={"kind": "focal"})
    model = config.build()
    outputs = model(torch.randn(2, 3, 64, 64, generator=rng))
    assert outputs["pred_logits"].shape == (2, 12, 5)
    assert isinstance(model.class_head, nn.Linear)
    assert outputs["pred_logits"].sigmoid().mean() < 0.1
    targets = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]]), "labels": torch.tensor([4])}] * 2
    criterion = config.build_criterion()
    criterion.total(criterion(outputs, targets)).backward()
    assert all(parameter.grad is not None for parameter in model.class_head.parameters())
    detections = config.build_postprocess()(outputs, [(64, 64), (32, 48)])
    assert [len(each["scores"]) for each in detections] == [60, 60]


def test_the_larger_variants_have_a_resnet_101():
    assert preset("detr_r101") == preset("detr_r50").replace(backbone=ResNetConfig(name="resnet101"))
