import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from deformdetr.losses import dice_loss, sigmoid_focal_loss
from goldens import load_golden, unit


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5), (1.0, 0.0)])
def test_focal_loss_agrees_with_torchvision(alpha: float, gamma: float, rng: torch.Generator) -> None:
    logits = torch.randn(5, 7, 3, generator=rng, dtype=torch.float64) * 3
    targets = (torch.rand(5, 7, 3, generator=rng) > 0.7).double()
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma),
        torchvision_focal_loss(logits, targets, alpha=alpha, gamma=gamma),
    )


def test_focal_loss_agrees_with_the_golden() -> None:
    targets = (unit("focal.targets", (2, 5, 3)) > 0.8).double()
    loss = sigmoid_focal_loss(unit("focal.logits", (2, 5, 3)), targets).mean(1).sum() / 4
    assert float(loss) == pytest.approx(float(load_golden("parts").arrays["loss/focal_num_boxes_4"]), rel=1e-10)


def test_dice_loss_agrees_with_the_golden() -> None:
    targets = (unit("focal.targets", (2, 5, 3)) > 0.8).double()
    loss = dice_loss(unit("focal.logits", (2, 5, 3)).flatten(1), targets.flatten(1)).sum() / 4
    assert float(loss) == pytest.approx(float(load_golden("parts").arrays["loss/dice_num_boxes_4"]), rel=1e-10)


def test_without_focusing_the_loss_is_half_of_the_cross_entropy(rng: torch.Generator) -> None:
    logits, targets = torch.randn(4, 3, generator=rng), torch.rand(4, 3, generator=rng)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") / 2
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0.0), expected)


def test_losses_of_logits_have_the_right_gradients(rng: torch.Generator) -> None:
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(4, 3, generator=rng) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, targets), (logits,))
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, targets), (logits,))


def test_losses_and_gradients_of_extreme_logits_are_finite() -> None:
    logits = torch.tensor([100.0, -100.0, 100.0, -100.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(loss.detach(), torch.tensor([75.0, 0.0, 0.0, 25.0]))


def test_dice_loss_of_a_perfect_mask_is_zero() -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(dice_loss((targets - 0.5) * 200, targets), torch.zeros(2))


@pytest.mark.parametrize(("alpha", "gamma", "value"), [(-0.1, 2.0, "-0.1"), (1.5, 2.0, "1.5"), (0.5, -1.0, "-1.0")])
def test_settings_out_of_range_raise(alpha: float, gamma: float, value: str) -> None:
    with pytest.raises(ValueError, match=f"got {value}"):
        sigmoid_focal_loss(torch.zeros(1, 1), torch.zeros(1, 1), alpha=alpha, gamma=gamma)
