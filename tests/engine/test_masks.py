"""Runs of models with masks: training, evaluation and drawing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from deformdetr.config import load_config
from deformdetr.data import LabelMap, build_dataset, write_shapes
from deformdetr.engine import (
    DetectionResult,
    Experiment,
    Processes,
    demo_experiment,
    enable_gradient_checkpointing,
    evaluate,
    evaluate_run,
    load_run,
    predict,
    run_demo,
    train,
)
from deformdetr.engine._inference import _known_segments, panoptic_postprocess
from deformdetr.visualize import draw_comparison
from experiments import SETTINGS
from oracle import Oracle

DETR = {
    "kind": "detr",
    "num_queries": 8,
    "d_model": 16,
    "n_heads": 2,
    "d_ffn": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "backbone": {"kind": "conv", "channels": [8, 8, 8, 16]},
}
MODELS = {"deformable_detr": SETTINGS["model"], "detr": DETR}


def experiment(model: dict[str, Any], **train_settings: Any) -> Experiment:
    settings = {"model": model | {"masks": True}, "train": SETTINGS["train"] | train_settings}
    return Experiment.model_validate(SETTINGS | settings)


@pytest.fixture(scope="session", params=MODELS)
def masks_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run with masks. Tests must not change it."""
    return train(experiment(MODELS[request.param]), tmp_path_factory.mktemp("runs") / "masks").run


def test_perfect_masks_have_a_precision_of_one_at_any_batch_size() -> None:
    described = experiment(MODELS["deformable_detr"])
    dataset = build_dataset(described.data.replace(num_val=7), "val", masks=True)
    postprocess = described.model.build_postprocess(mask_threshold=0.5)
    for batch_size in (1, 3, 7):
        found = evaluate(Oracle(dataset), postprocess, dataset, Processes(), batch_size=batch_size)
        assert found.metrics["AP"] == pytest.approx(1)
        assert found.metrics["segm"]["AP"] == pytest.approx(1)


def test_perfect_masks_have_a_panoptic_quality_of_one_at_any_batch_size() -> None:
    described = experiment(MODELS["deformable_detr"])
    dataset = build_dataset(described.data.replace(num_val=7, stuff=True), "val", masks=True)
    panoptic = panoptic_postprocess(described, dataset.label_map)
    assert panoptic is not None
    for batch_size in (1, 3):
        postprocess = described.model.build_postprocess(mask_threshold=0.5)
        found = evaluate(Oracle(dataset), postprocess, dataset, Processes(), batch_size=batch_size, panoptic=panoptic)
        assert found.metrics["panoptic"]["PQ"] == pytest.approx(1)
        assert found.metrics["panoptic"]["stuff"]["classes"] == 2


def test_panoptic_segmentations_need_masks_and_stuff() -> None:
    stuff = LabelMap.contiguous({1: "cat", 2: "sky"}, stuff=[2])
    described = experiment(DETR)
    assert panoptic_postprocess(described, stuff).threshold == 0.85
    assert panoptic_postprocess(described, LabelMap.contiguous({1: "cat"})) is None
    assert panoptic_postprocess(described.replace(model=described.model.replace(masks=False)), stuff) is None
    result = DetectionResult(
        image=torch.zeros(3, 8, 8, dtype=torch.uint8),
        boxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
        class_names=("cat",),
        best_score=None,
    )
    with pytest.raises(ValueError, match="there is no panoptic segmentation"):
        result.draw_panoptic()


def test_segments_of_unknown_classes_are_void() -> None:
    found = {
        "segment_map": torch.tensor([[3, 1, 2, 0]]),
        "labels": torch.tensor([4, 7, 0]),
        "scores": torch.tensor([0.7, 0.8, 0.9]),
    }
    known = _known_segments(found, 5)
    assert known["segment_map"].tolist() == [[2, 1, 0, 0]]
    assert known["labels"].tolist() == [4, 0]
    assert known["scores"].tolist() == pytest.approx([0.7, 0.9])


def test_a_run_records_losses_and_precision_of_masks(masks_run: Path) -> None:
    rows = [json.loads(line) for line in (masks_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss_mask"] > 0
        assert row["loss_dice"] > 0
        assert row["segm"]["AP"] is not None
        assert len(row["segm"]["per_class"]) == 3
    assert (masks_run / "curves.png").stat().st_size > 0


def test_a_run_is_evaluated_in_boxes_and_masks(masks_run: Path, tmp_path: Path) -> None:
    found = evaluate_run(masks_run, output=tmp_path / "result.json")
    _, checkpoint = load_run(masks_run)
    assert found.metrics == checkpoint.metrics
    assert json.loads((tmp_path / "result.json").read_text())["segm"]["AP"] == found.metrics["segm"]["AP"]
    titles = [line for line in found.table.splitlines() if not line.startswith((" Average", "("))]
    assert titles == ["boxes", "masks"]
    assert evaluate_run(masks_run, batch_size=1, output=tmp_path / "one.json").metrics == found.metrics


def test_written_annotations_give_the_same_metrics(masks_run: Path, tmp_path: Path) -> None:
    _, checkpoint = load_run(masks_run)
    files = write_shapes(checkpoint.experiment.data, tmp_path)
    changes = files.model_dump(mode="json", exclude_unset=True) | {"kind": "coco"}
    found = evaluate_run(masks_run, data_changes=changes, output=tmp_path / "result.json")
    assert found.metrics == checkpoint.metrics


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_predictions_hold_masks_that_pycocotools_reads(masks_run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "wide.png"
    Image.effect_noise((150, 40), 90).convert("RGB").save(picture)
    (listed,) = predict(masks_run, [picture], tmp_path / "out", threshold=0.0).images
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"][0]
    assert written == listed
    assert len(written["masks"]) == len(written["scores"]) > 0
    assert {tuple(mask["size"]) for mask in written["masks"]} == {(40, 150)}
    assert coco_mask.decode(written["masks"]).shape == (40, 150, len(written["scores"]))
    with Image.open(tmp_path / "out" / "wide.png") as drawn:
        assert drawn.width > drawn.height


def test_predictions_of_runs_without_masks_have_none(finished_run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), (200, 40, 40)).save(picture)
    (listed,) = predict(finished_run, [picture], tmp_path / "out").images
    assert "masks" not in listed
    assert "masks" not in evaluate_run(finished_run, output=tmp_path / "result.json").table


def test_weights_without_a_mask_head_can_initialize_a_run_with_masks(finished_run: Path, tmp_path: Path) -> None:
    described = experiment(MODELS["deformable_detr"], epochs=1, init_checkpoint=finished_run / "best.pt")
    result = train(described, tmp_path / "run")
    assert result.metrics["segm"]["AP"] is not None


def test_only_the_mask_head_can_be_trained(finished_run: Path, tmp_path: Path) -> None:
    start = finished_run / "best.pt"
    settings = {"epochs": 2, "init_checkpoint": start, "trainable": ["mask_head"], "gradient_checkpointing": True}
    result = train(experiment(MODELS["deformable_detr"], **settings), tmp_path / "run")
    before, after = (torch.load(path, weights_only=True)["model"] for path in (start, result.run / "last.pt"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert set(after) - set(before) == {name for name in after if name.startswith("mask_head.")}
    first, last = (json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines())
    assert first["AP"] == last["AP"] == evaluate_run(start, output=tmp_path / "before.json").metrics["AP"]
    # Group norms start with ones.
    assert not after["mask_head.convolutions.norms.0.weight"].eq(1).any()
    # With equal AP of boxes, masks decide which checkpoint is best.
    _, best = load_run(result.run, prefer=("best.pt",))
    assert best.epoch == (2 if last["segm"]["AP"] > first["segm"]["AP"] else 1)


def test_one_setting_enables_masks(masks_run: Path) -> None:
    read = load_config(masks_run / "config.yaml", Experiment)
    assert read.model.masks
    assert read == load_run(masks_run)[1].experiment


@pytest.mark.parametrize("name", MODELS)
def test_recomputing_the_mask_head_changes_no_gradient(name: str, rng: torch.Generator, seed: int) -> None:
    model = experiment(MODELS[name]).model.replace(num_classes=3, dropout=0.2, num_queries=30).build().train()
    images = torch.rand(2, 3, 96, 96, generator=rng)
    calls = []
    model.mask_head.convolutions.norms[0].register_forward_hook(lambda *_: calls.append(None))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(seed)
        model(images)["pred_masks"].square().mean().backward()
        return {key: each.grad for key, each in model.named_parameters() if each.grad is not None}

    expected = gradients()
    assert len(calls) == 2
    names = list(model.state_dict())
    enable_gradient_checkpointing(model)
    assert list(model.state_dict()) == names
    found = gradients()
    assert len(calls) == 2 + 4
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)


def test_the_demonstration_draws_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = experiment(MODELS["deformable_detr"], epochs=1)
    drawn = []

    def compare(*given: Any, **settings: Any) -> Image.Image:
        drawn.append(("masks" in given[1], "masks" in given[2]))
        return draw_comparison(*given, **settings)

    monkeypatch.setattr("deformdetr.engine._demo.draw_comparison", compare)
    result = run_demo(tmp_path / "demo", described)
    assert "masks" in result.evaluation.table.splitlines()
    assert set(drawn) == {(True, True)}
    assert demo_experiment(masks=True).model == demo_experiment().model.replace(masks=True)


# It trains for minutes, to which checks of shapes would add a third. Tests above check them.
@pytest.mark.slow
@pytest.mark.unchecked
def test_masks_are_learned_on_shapes(tmp_path: Path) -> None:
    described = demo_experiment(masks=True)
    described = described.replace(
        model=described.model.replace(num_queries=12, num_feature_levels=2, d_model=32, top_k=12),
        data=described.data.replace(num_train=400, num_val=60, image_size=64, min_size=0.4, max_objects=1),
        train=described.train.replace(epochs=9, eval_every=9),
    )
    untrained = described.model.replace(num_classes=3).build()
    dataset = build_dataset(described.data, "val", masks=True)
    postprocess = described.model.build_postprocess(mask_threshold=0.5)
    before = evaluate(untrained, postprocess, dataset, Processes(), batch_size=8).metrics["segm"]
    after = train(described, tmp_path / "run").metrics["segm"]
    assert before["AP50"] < 0.02
    assert after["AP"] > 0.07
    assert after["AP50"] > 0.2
