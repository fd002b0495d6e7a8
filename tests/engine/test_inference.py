"""Detector, evaluation, prediction and export give models the same inputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from coco_files import coco_document, write_coco
from deformdetr import Detector
from deformdetr.cli import _export
from deformdetr.data import DataConfig, build_dataset, collate, load_image
from deformdetr.engine import Checkpoint, _predictor, load_run, predict
from deformdetr.engine._inference import MASK_THRESHOLD, detect
from deformdetr.structures import ImageBatch

SIZES = [(60, 100), (108, 192), (200, 40), (48, 64)]


@pytest.fixture
def checkpoint(finished_run: Path, tmp_path: Path) -> Path:
    """Return a trained checkpoint with four evaluation images, which are resized."""
    document = coco_document()
    document["images"] = [
        {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        for number, (height, width) in enumerate(SIZES)
    ]
    document["annotations"] = [{"id": 1, "image_id": 0, "category_id": 20, "bbox": [1, 2, 10, 20], "iscrowd": 0}]
    annotations = write_coco(tmp_path / "images", document)
    places = {"images": tmp_path / "images", "annotations": annotations}
    files = {f"{split}_{kind}": path for split in ("train", "val") for kind, path in places.items()}
    data = DataConfig(
        **files, eval_short_side=48, eval_max_size=80, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.1)
    )
    _, old = load_run(finished_run)
    label_map = build_dataset(data, "val").label_map
    path = tmp_path / "checkpoint.pt"
    replace(old, experiment=old.experiment.replace(data=data), label_map=label_map).save(path)
    return path


def detector(checkpoint: Checkpoint) -> Detector:
    config, data = checkpoint.experiment.model, checkpoint.experiment.data
    return Detector(
        checkpoint.build(),
        config.build_criterion(),
        config.build_postprocess(mask_threshold=MASK_THRESHOLD),
        image_mean=data.image_mean,
        image_std=data.image_std,
        min_size=data.eval_short_side,
        max_size=data.eval_max_size,
    ).eval()


def inputs_of(model: Detector, images: list[Tensor]) -> ImageBatch:
    """Return the inputs of the model in a detector."""
    seen: list[Any] = []
    handle = model.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.inference_mode():
        model(images)
    handle.remove()
    return ImageBatch(*seen[0])


def test_a_detector_equals_evaluation_bit_for_bit(checkpoint: Path) -> None:
    loaded = Checkpoint.load(checkpoint)
    model, dataset = detector(loaded), build_dataset(loaded.experiment.data, "val")
    images = [load_image(checkpoint.parent / "images" / f"{number}.png") for number in range(len(SIZES))]
    batch, targets = collate([dataset[number] for number in range(len(SIZES))])
    assert [target["size"].tolist() for target in targets] == [[48, 80], [45, 80], [80, 16], [48, 64]]
    seen = inputs_of(model, images)
    assert torch.equal(seen.images, batch.images)
    assert torch.equal(seen.padding_mask, batch.padding_mask)
    sizes = [tuple(target["orig_size"].tolist()) for target in targets]
    assert sizes == SIZES
    expected = detect(model.model, model.postprocess, batch, sizes, num_labels=99).detections
    with torch.inference_mode():
        found = model(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert len(ours["scores"]) == 20
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_prediction_and_export_use_the_same_inputs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Checkpoint.load(checkpoint)
    model, dataset = detector(loaded), build_dataset(loaded.experiment.data, "val")
    expected = [dataset[number][0] for number in range(len(SIZES))]
    files = [checkpoint.parent / "images" / f"{number}.png" for number in range(len(SIZES))]

    predicted: list[ImageBatch] = []

    def record(*arguments: Any, **options: Any) -> Any:
        predicted.append(arguments[2])
        return detect(*arguments, **options)

    monkeypatch.setattr(_predictor, "detect", record)
    result = predict(checkpoint, files, tmp_path / "out")
    assert all(torch.equal(batch.images[0], image) for batch, image in zip(predicted, expected, strict=True))
    for file, listed in zip(files, result.images, strict=True):
        with torch.inference_mode():
            (found,) = model([load_image(file)])
        # The model has one class more than the dataset.
        keep = found["labels"] < 2
        torch.testing.assert_close(torch.tensor(listed["scores"]), found["scores"][keep], rtol=0, atol=1e-5)
        boxes = clip_boxes_to_image(found["boxes"][keep], (listed["height"], listed["width"]))
        torch.testing.assert_close(torch.tensor(listed["boxes"]), boxes, rtol=0, atol=0.0051)

    exported: list[Tensor] = []
    monkeypatch.setattr(_export, "export_onnx", lambda *_, images, **__: exported.extend(images))
    monkeypatch.setattr(_export, "_show", lambda _: None)
    _export.Export(run=str(checkpoint), onnx=tmp_path / "model.onnx", images=files).execute()
    _export.Export(run=str(checkpoint), onnx=tmp_path / "model.onnx").execute()
    assert len(exported) == len(files) + 2
    assert all(torch.equal(one, other) for one, other in zip(exported, expected + expected[:2], strict=True))


def test_floating_point_images_of_unchanged_size_give_the_same_inputs(checkpoint: Path) -> None:
    loaded = Checkpoint.load(checkpoint)
    image = load_image(checkpoint.parent / "images" / "3.png")
    model = detector(loaded)
    assert torch.equal(inputs_of(model, [image.float() / 255]).images, inputs_of(model, [image]).images)
