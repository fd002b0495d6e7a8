import pytest
import torch
from torch import Tensor
from torchvision import ops

from deformdetr.boxes import (
    box_area,
    box_iou,
    cxcywh_to_xyxy,
    elementwise_box_iou,
    elementwise_generalized_box_iou,
    generalized_box_iou,
    inverse_sigmoid,
    scale_boxes,
    xyxy_to_cxcywh,
)
from goldens import load_golden, unit


def random_boxes(*shape: int, rng: torch.Generator) -> Tensor:
    corners = torch.rand(*shape, 2, 2, generator=rng, dtype=torch.float64)
    return torch.cat([corners.amin(-2), corners.amax(-2) + 0.01], dim=-1)


def test_conversions_agree_with_torchvision_and_undo_each_other(rng: torch.Generator) -> None:
    boxes = random_boxes(7, rng=rng)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), ops.box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_conversions_keep_leading_axes_and_take_no_boxes(rng: torch.Generator) -> None:
    boxes = random_boxes(2, 3, rng=rng)
    torch.testing.assert_close(cxcywh_to_xyxy(boxes)[1, 2], cxcywh_to_xyxy(boxes[1, 2]))
    assert cxcywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)


def test_scaling_multiplies_x_by_the_width_and_y_by_the_height() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    expected = torch.tensor([[2.0, 2.0, 6.0, 4.0]])
    torch.testing.assert_close(scale_boxes(boxes, (10, 20)), expected)
    torch.testing.assert_close(scale_boxes(boxes, torch.tensor([10, 20])), expected)


def test_scaling_takes_one_size_per_image(rng: torch.Generator) -> None:
    boxes = random_boxes(2, 3, rng=rng).float()
    sizes = torch.tensor([[10, 20], [30, 5]])
    scaled = scale_boxes(boxes, sizes[:, None])
    assert scaled.dtype == torch.float32
    for image in range(2):
        torch.testing.assert_close(
            scaled[image], scale_boxes(boxes[image], (int(sizes[image, 0]), int(sizes[image, 1])))
        )


def test_areas_and_overlaps_agree_with_torchvision(rng: torch.Generator) -> None:
    a, b = random_boxes(6, rng=rng), random_boxes(5, rng=rng)
    torch.testing.assert_close(box_area(a), ops.box_area(a))
    torch.testing.assert_close(box_iou(a, b), ops.box_iou(a, b))
    torch.testing.assert_close(generalized_box_iou(a, b), ops.generalized_box_iou(a, b))


def test_elementwise_overlaps_are_the_diagonal_of_pairwise_ones(rng: torch.Generator) -> None:
    a, b = random_boxes(6, rng=rng), random_boxes(6, rng=rng)
    torch.testing.assert_close(elementwise_box_iou(a, b), box_iou(a, b).diagonal())
    torch.testing.assert_close(elementwise_generalized_box_iou(a, b), generalized_box_iou(a, b).diagonal())


def test_pairwise_overlaps_take_batches_and_no_boxes(rng: torch.Generator) -> None:
    a, b = random_boxes(2, 4, rng=rng), random_boxes(2, 3, rng=rng)
    torch.testing.assert_close(generalized_box_iou(a, b)[1], generalized_box_iou(a[1], b[1]))
    assert generalized_box_iou(a[0], b[0, :0]).shape == (4, 0)


def test_giou_agrees_with_the_golden() -> None:
    a, b = (cxcywh_to_xyxy(unit(f"boxes.{name}", (count, 4)).abs() * 0.2 + 0.1) for name, count in (("a", 6), ("b", 4)))
    expected = torch.from_numpy(load_golden("parts").arrays["boxes/giou"])
    torch.testing.assert_close(generalized_box_iou(a, b), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "box",
    [[0.5, 0.5, 0.5, 0.5], [0.2, 0.5, 0.8, 0.5], [0.5, 0.1, 0.5, 0.9], [0.8, 0.2, 0.1, 0.9], [0.8, 0.9, 0.1, 0.2]],
    ids=["point", "horizontal line", "vertical line", "x swapped", "both swapped"],
)
def test_degenerate_boxes_overlap_nothing_and_have_finite_gradients(box: list[float]) -> None:
    boxes = torch.tensor([box, [0.3, 0.3, 0.6, 0.6]])
    a, b = boxes[:1].clone().requires_grad_(), boxes.clone().requires_grad_()
    giou = generalized_box_iou(a, b)
    iou = box_iou(a, b)
    (giou.sum() + iou.sum()).backward()
    assert iou.tolist() == [[0, 0]]
    assert (giou.abs() <= 1).all()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_overlaps_do_not_hide_nan() -> None:
    box = torch.tensor([0.1, 0.1, torch.nan, 0.4])
    assert elementwise_generalized_box_iou(box, torch.tensor([0.0, 0.0, 1.0, 1.0])).isnan()


def test_giou_has_the_right_gradient(rng: torch.Generator) -> None:
    a, b = random_boxes(5, rng=rng).requires_grad_(), random_boxes(5, rng=rng).requires_grad_()
    assert torch.autograd.gradcheck(elementwise_generalized_box_iou, (a, b))


def test_inverse_sigmoid_agrees_with_the_golden() -> None:
    arrays = load_golden("parts").arrays
    x, expected = (torch.from_numpy(arrays[f"misc/inverse_sigmoid_{end}"]) for end in ("in", "out"))
    torch.testing.assert_close(inverse_sigmoid(x), expected, rtol=1e-12, atol=1e-12)


def test_inverse_sigmoid_undoes_the_sigmoid_and_is_bounded(rng: torch.Generator) -> None:
    logits = torch.randn(9, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits)
    bound = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]), eps=1e-3)
    torch.testing.assert_close(bound, torch.tensor([-1.0, -1.0, 1.0, 1.0]) * -torch.tensor(1e-3).log())


@pytest.mark.parametrize("eps", [0.0, -1e-5, 0.5])
def test_inverse_sigmoid_refuses_an_eps_that_bounds_nothing(eps: float) -> None:
    with pytest.raises(ValueError, match=f"got {eps}"):
        inverse_sigmoid(torch.zeros(1), eps=eps)
