import torch
from torchvision.ops import generalized_box_iou_loss

from deformdetr.losses import giou_loss


def random_boxes(count: int, rng: torch.Generator) -> torch.Tensor:
    lower = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    return torch.cat([lower, lower + 0.1 + torch.rand(count, 2, generator=rng, dtype=torch.float64)], dim=1)


def test_giou_loss_agrees_with_torchvision(rng: torch.Generator) -> None:
    boxes, targets = random_boxes(6, rng), random_boxes(6, rng)
    # torchvision adds 1e-7 to the denominators.
    torch.testing.assert_close(giou_loss(boxes, targets), generalized_box_iou_loss(boxes, targets), rtol=0, atol=1e-5)


def test_giou_loss_is_zero_for_equal_boxes_and_two_at_most(rng: torch.Generator) -> None:
    boxes = random_boxes(6, rng)
    torch.testing.assert_close(giou_loss(boxes, boxes), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    far = giou_loss(torch.tensor([[0.0, 0.0, 1e-3, 1e-3]]), torch.tensor([[1.0, 1.0, 1.001, 1.001]]))
    assert 1.99 < float(far) <= 2


def test_giou_loss_has_the_right_gradient(rng: torch.Generator) -> None:
    boxes, targets = random_boxes(5, rng).requires_grad_(), random_boxes(5, rng)
    assert torch.autograd.gradcheck(giou_loss, (boxes, targets))
