"""Pictures of augmented training images."""

import numpy as np
import pytest
import torch

from deformdetr.data import AugmentConfig, ColorConfig, DetectionDataset
from deformdetr.engine import draw_augmented, train
from deformdetr.visualize import class_color
from experiments import tiny_experiment


def test_sheet_shows_the_images_that_training_starts_with(tmp_path, monkeypatch):
    augment = AugmentConfig(short_sides=(40, 56), crop=False, color=ColorConfig())
    experiment = tiny_experiment()
    experiment = experiment.replace(data=experiment.data.replace(augment=augment))
    seen = []
    getitem = DetectionDataset.__getitem__

    def recording(self, index):
        seen.append(getitem(self, index))
        return seen[-1]

    monkeypatch.setattr(DetectionDataset, "__getitem__", recording)
    draw_augmented(experiment, count=8)
    train(experiment, tmp_path / "run")
    for (image, target), (trained, other) in zip(seen[:8], seen[8:16], strict=True):
        assert torch.equal(image, trained)
        assert torch.equal(target["boxes"], other["boxes"])


def test_sheet_shows_boxes_in_the_colors_of_their_classes():
    sheet = np.asarray(draw_augmented(tiny_experiment(), count=12)).astype(int)
    for label in range(3):
        # Colors are those of outlines and names, up to shrinking. No shape of the dataset has them.
        assert (np.abs(sheet - class_color(label)).max(axis=-1) < 8).sum() > 50


def test_sheet_of_few_images_is_small():
    assert draw_augmented(tiny_experiment(), count=40).size == (1640, 1232)
    assert draw_augmented(tiny_experiment(), count=2).size == (824, 416)


@pytest.mark.parametrize("count", [0, -1])
def test_sheets_without_pictures_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count must be positive, got {count}"):
        draw_augmented(tiny_experiment(), count=count)
