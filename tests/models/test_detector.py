from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deformdetr.losses import SetCriterion
from deformdetr.matching import HungarianMatcher
from deformdetr.models._detector import Detector
from deformdetr.models._postprocess import SigmoidPostProcess
from deformdetr.structures import Predictions


class Stub(nn.Module):
    """Predicts fixed outputs, and records its inputs."""

    def __init__(self, queries: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(queries, classes))
        self.boxes = nn.Parameter(torch.randn(queries, 4))

    def forward(self, images: Tensor, padding_mask: Tensor) -> Predictions:
        self.images, self.padding_mask = images, padding_mask
        logits = self.logits.expand(len(images), -1, -1)
        boxes = self.boxes.sigmoid().expand(len(images), -1, -1)
        return {
            "pred_logits": logits,
            "pred_boxes": boxes,
            "aux_outputs": [{"pred_logits": logits + 1, "pred_boxes": boxes}],
        }


def detector(**settings: Any) -> Detector:
    return Detector(Stub(), SetCriterion(HungarianMatcher()), SigmoidPostProcess(top_k=5), **settings)


def images(rng: torch.Generator, *sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.rand(3, *size, generator=rng) for size in sizes]


def target(*boxes: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": torch.arange(len(boxes)) % 3}


def test_detections_are_in_pixels_of_the_given_images(rng: torch.Generator) -> None:
    found = detector(min_size=16).eval()(images(rng, (10, 20), (40, 30)))
    assert [set(of_image) for of_image in found] == [{"boxes", "scores", "labels"}] * 2
    # The stub predicts the same fractions for every image.
    fractions = [found[0]["boxes"] / torch.tensor([20, 10, 20, 10]), found[1]["boxes"] / torch.tensor([30, 40, 30, 40])]
    torch.testing.assert_close(fractions[0], fractions[1])
    assert found[0]["scores"].tolist() == sorted(found[0]["scores"].tolist(), reverse=True)


def test_the_model_gets_normalized_padded_images(rng: torch.Generator) -> None:
    given = images(rng, (10, 20), (16, 8))
    model = detector(min_size=None, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7)).eval()
    model(given)
    seen = model.model
    assert isinstance(seen, Stub)
    assert seen.images.shape == (2, 3, 16, 20)
    expected = (given[1] - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(seen.images[1, :, :, :8], expected)
    assert seen.padding_mask[1, :, 8:].all()
    assert not seen.padding_mask[1, :, :8].any()


@pytest.mark.parametrize(
    ("size", "resized"),
    [((60, 100), (30, 50)), ((100, 60), (50, 30)), ((30, 90), (20, 60)), ((3, 300), (1, 100)), ((30, 40), (30, 40))],
    ids=["landscape", "portrait", "too long", "far too long", "right already"],
)
def test_the_short_side_is_resized_within_the_limit_of_the_long_side(
    size: tuple[int, int], resized: tuple[int, int], rng: torch.Generator
) -> None:
    model = detector(min_size=30, max_size=60).eval()
    model(images(rng, size))
    assert isinstance(model.model, Stub)
    assert model.model.images.shape[-2:] == resized


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = torch.zeros(3, 32, 32)
    stripes[:, :, ::4] = 1
    model = detector(min_size=8, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0)).eval()
    model([stripes])
    assert isinstance(model.model, Stub)
    torch.testing.assert_close(model.model.images[..., 1:-1], torch.full((1, 3, 8, 6), 0.25), rtol=0, atol=0.05)


def test_training_gives_weighted_losses_that_add_up_to_the_total(rng: torch.Generator) -> None:
    model = detector(min_size=None).train()
    losses = model(images(rng, (10, 20), (16, 8)), [target([2, 1, 12, 6], [0, 0, 20, 10]), target()])
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"}
    fractions: list[Any] = [
        {"boxes": torch.tensor([[0.35, 0.35, 0.5, 0.5], [0.5, 0.5, 1, 1]]), "labels": torch.tensor([0, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    outputs = model.model(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool))
    expected = model.criterion.total(model.criterion(outputs, fractions))
    total = sum(losses.values())
    torch.testing.assert_close(total, expected)
    total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_reference_training_loop_finds_an_object(rng: torch.Generator) -> None:
    given = images(rng, (20, 40))
    wanted = [{"boxes": torch.tensor([[10.0, 5.0, 30.0, 15.0]]), "labels": torch.tensor([2])}]
    model = detector(min_size=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(80):
        loss = sum(model(given, wanted).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = model.eval()(given)
    assert int(found["labels"][0]) == 2
    torch.testing.assert_close(found["boxes"][0].detach(), wanted[0]["boxes"][0], rtol=0, atol=2)


def test_evaluation_ignores_targets(rng: torch.Generator) -> None:
    given, model = images(rng, (10, 20)), detector(min_size=None).eval()
    torch.testing.assert_close(model(given, [{}]), model(given))


def test_training_without_targets_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="targets must be given"):
        detector().train()(images(rng, (10, 20)))
    with pytest.raises(ValueError, match="1 images, but targets for 2"):
        detector().train()(images(rng, (10, 20)), [target(), target()])


@pytest.mark.parametrize("box", [[3.0, 4.0, 3.0, 8.0], [9.0, 4.0, 3.0, 8.0], [3.0, 8.0, 5.0, 4.0]])
def test_a_box_without_width_or_height_is_refused_by_index(box: list[float], rng: torch.Generator) -> None:
    targets = [target([2, 1, 12, 6]), target([2, 1, 7, 6], box)]
    with pytest.raises(ValueError, match=rf"target 1 has \[\[{', '.join(map(str, box))}\]\]"):
        detector(min_size=None).train()(images(rng, (10, 20), (16, 8)), targets)


def test_an_invalid_label_is_refused_by_index(rng: torch.Generator) -> None:
    wrong = {"boxes": torch.tensor([[2.0, 1.0, 12.0, 6.0]]), "labels": torch.tensor([3])}
    with pytest.raises(ValueError, match=r"image 0 have labels \[3\], outside 0 to 2"):
        detector(min_size=None).train()(images(rng, (10, 20)), [wrong])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"boxes": torch.zeros(1, 4)}, ValueError, r"target 0 has no \['labels'\], only \['boxes'\]"),
        ({"boxes": torch.zeros(4), "labels": torch.zeros(1)}, ValueError, r"target 0 .* got \(4,\)"),
        ({"boxes": torch.ones(1, 4).long(), "labels": torch.zeros(1)}, TypeError, r"target 0 .* got torch\.int64"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1]]), "labels": torch.zeros(1)}, TypeError, r"image 0 .* torch\.float32"),
    ],
)
def test_targets_of_another_form_are_refused(
    wrong: Mapping[str, Tensor], error: type[Exception], message: str, rng: torch.Generator
) -> None:
    with pytest.raises(error, match=message):
        detector(min_size=None).train()(images(rng, (10, 20)), [wrong])


def test_images_of_another_form_are_refused(rng: torch.Generator) -> None:
    good = images(rng, (10, 20))
    with pytest.raises(ValueError, match=r"image 1 .* got \(1, 4, 4\)"):
        detector().eval()([*good, torch.rand(1, 4, 4)])
    with pytest.raises(TypeError, match=r"image 1 .* got torch\.int16"):
        detector().eval()([*good, torch.zeros(3, 4, 4, dtype=torch.int16)])
    with pytest.raises(ValueError, match="at least one image"):
        detector().eval()([])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_size \(800\) .* max_size \(600\)"):
        detector(max_size=600)
    with pytest.raises(ValueError, match=r"image_std must be positive, got \(1\.0, 0\.0, 1\.0\)"):
        detector(image_std=(1.0, 0.0, 1.0))


def test_mean_and_deviation_are_not_in_the_state_dict(rng: torch.Generator) -> None:
    model = detector(min_size=None).double().eval()
    assert set(model.state_dict()) == {"model.logits", "model.boxes"}
    model(images(rng, (10, 20)))
    assert isinstance(model.model, Stub)
    assert model.model.images.dtype == torch.float32
