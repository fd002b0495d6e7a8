import pytest
import torch

from deformdetr.models._postprocess import PostProcess, SigmoidPostProcess, SoftmaxPostProcess
from deformdetr.structures import LayerPredictions
from goldens import load_golden

DEFORMABLE = ("single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage")


def random_predictions(queries: int, classes: int, rng: torch.Generator) -> LayerPredictions:
    return {
        "pred_logits": torch.randn(2, queries, classes, generator=rng),
        "pred_boxes": torch.rand(2, queries, 4, generator=rng),
    }


@pytest.mark.parametrize(
    ("name", "postprocess"),
    [(name, SigmoidPostProcess()) for name in DEFORMABLE]
    + [(name, SoftmaxPostProcess()) for name in ("detr_r50", "detr_r50_dc5")],
)
def test_detections_of_whole_models_agree_with_the_golden(name: str, postprocess: PostProcess) -> None:
    arrays, facts = load_golden(name)
    predictions: LayerPredictions = {
        "pred_logits": torch.from_numpy(arrays["pred_logits"]),
        "pred_boxes": torch.from_numpy(arrays["pred_boxes"]),
    }
    sizes = [(height, width) for height, width in facts["image_sizes_hw"]]
    for image, found in enumerate(postprocess(predictions, sizes)):
        scores, labels, boxes = (
            torch.from_numpy(arrays[f"post{image}_{key}"]) for key in ("scores", "labels", "boxes")
        )
        assert found["labels"].dtype == torch.int64
        assert found["labels"].tolist() == labels.tolist()
        torch.testing.assert_close(found["scores"], scores, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found["boxes"] / max(sizes[image]), boxes / max(sizes[image]), rtol=0, atol=1e-6)


def test_the_best_pairs_of_query_and_class_are_kept_best_first(rng: torch.Generator) -> None:
    predictions = random_predictions(5, 3, rng)
    for image, found in enumerate(SigmoidPostProcess(top_k=4)(predictions, [(10, 20), (10, 20)])):
        scores = predictions["pred_logits"][image].sigmoid().tolist()
        pairs = [(scores[query][label], query, label) for query in range(5) for label in range(3)]
        for position, (score, query, label) in enumerate(sorted(pairs, reverse=True)[:4]):
            x, y, width, height = predictions["pred_boxes"][image, query].tolist()
            corners = [(x - width / 2) * 20, (y - height / 2) * 10, (x + width / 2) * 20, (y + height / 2) * 10]
            assert float(found["scores"][position]) == pytest.approx(score, rel=1e-6)
            assert int(found["labels"][position]) == label
            assert found["boxes"][position].tolist() == pytest.approx(corners, abs=1e-4)


def test_fewer_pairs_than_top_k_are_all_returned(rng: torch.Generator) -> None:
    for found in SigmoidPostProcess()(random_predictions(5, 3, rng), [(10, 20), (30, 40)]):
        assert found["boxes"].shape == (15, 4)
        assert len(found["scores"]) == len(found["labels"]) == 15


@pytest.mark.parametrize("postprocess", [SigmoidPostProcess(top_k=7), SoftmaxPostProcess()])
def test_sizes_are_pairs_or_a_tensor(postprocess: PostProcess, rng: torch.Generator) -> None:
    predictions = random_predictions(5, 3, rng)
    as_pairs = postprocess(predictions, [(10, 20), (30, 40)])
    as_tensor = postprocess(predictions, torch.tensor([[10, 20], [30, 40]]))
    torch.testing.assert_close(as_pairs, as_tensor, rtol=0, atol=0)


def test_no_detection_has_the_class_no_object(rng: torch.Generator) -> None:
    predictions = random_predictions(50, 3, rng)
    predictions["pred_logits"][..., 2] += 5
    for image, found in enumerate(SoftmaxPostProcess()(predictions, [(10, 20), (30, 40)])):
        probabilities = predictions["pred_logits"][image].softmax(-1)
        assert found["labels"].tolist() == probabilities[:, :2].argmax(-1).tolist()
        torch.testing.assert_close(found["scores"], probabilities[:, :2].amax(-1))


def test_saturated_scores_keep_their_order() -> None:
    # Both have a sigmoid of exactly 1 in float32.
    predictions: LayerPredictions = {
        "pred_logits": torch.tensor([[[30.0], [40.0]]]),
        "pred_boxes": torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]]),
    }
    (found,) = SigmoidPostProcess()(predictions, [(100, 100)])
    torch.testing.assert_close(found["boxes"][0], torch.tensor([75.0, 75.0, 85.0, 85.0]))


@pytest.mark.parametrize("postprocess", [SigmoidPostProcess(), SoftmaxPostProcess()])
def test_boxes_in_pixels_are_float32_for_all_dtypes(postprocess: PostProcess, rng: torch.Generator) -> None:
    predictions = random_predictions(5, 3, rng)
    half: LayerPredictions = {
        "pred_logits": predictions["pred_logits"].bfloat16(),
        "pred_boxes": predictions["pred_boxes"].bfloat16(),
    }
    for found in postprocess(half, [(1000, 1333), (800, 800)]):
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_invalid_arguments_are_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="2 images, but sizes of 1"):
        SigmoidPostProcess()(random_predictions(5, 3, rng), [(10, 20)])
    with pytest.raises(ValueError, match="got 0"):
        SigmoidPostProcess(top_k=0)
    with pytest.raises(ValueError, match="got 1 in all"):
        SoftmaxPostProcess()(random_predictions(5, 1, rng), [(10, 20), (30, 40)])
