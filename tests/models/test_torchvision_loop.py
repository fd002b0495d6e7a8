"""One loop for training and evaluation works with torchvision's detector and with this library's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from checkpoints import tiny_config
from deformdetr.models import Detector

SIZES = [(60, 80), (72, 64)]
CLASSES = 3


def faster_rcnn() -> nn.Module:
    model: nn.Module = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=64, max_size=96, box_detections_per_img=10
    )
    return model


def deformable_detr() -> nn.Module:
    config = tiny_config(num_classes=CLASSES, num_encoder_layers=1, top_k=10)
    return Detector(config.build(), config.build_criterion(), config.build_postprocess(), min_size=64, max_size=96)


def train_one_epoch(model: nn.Module, loader: list[Any], optimizer: torch.optim.Optimizer) -> list[float]:
    model.train()
    totals = []
    for images, targets in loader:
        losses = sum(loss for loss in model(images, targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        totals.append(losses.item())
    return totals


@torch.inference_mode()
def evaluate(model: nn.Module, loader: list[Any]) -> list[dict[str, Tensor]]:
    model.eval()
    return [{name: each.cpu() for name, each in found.items()} for images, _ in loader for found in model(images)]


@pytest.mark.parametrize("build", [faster_rcnn, deformable_detr], ids=["torchvision", "ours"])
def test_one_loop_trains_and_evaluates_either_detector(build: Callable[[], nn.Module], rng: torch.Generator):
    targets = [
        {"boxes": torch.tensor([[8.0, 10.0, 40.0, 50.0], [30.0, 5.0, 60.0, 30.0]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    loader = [([torch.rand(3, *size, generator=rng) for size in SIZES], targets)] * 2
    model = build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    totals = train_one_epoch(model, loader, optimizer)
    assert all(0 < total < torch.inf for total in totals)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

    found = evaluate(model, loader)
    assert len(found) == 4
    for detections in found:
        assert set(detections) == {"boxes", "labels", "scores"}
        count = len(detections["scores"])
        assert count <= 10
        assert detections["boxes"].shape == (count, 4)
        assert detections["labels"].dtype == torch.int64
        assert ((detections["labels"] >= 0) & (detections["labels"] < CLASSES)).all()
        assert detections["scores"].tolist() == sorted(detections["scores"].tolist(), reverse=True)
