import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from deformdetr.losses import FocalClassification, SoftmaxClassification, sigmoid_focal_loss

MATCHED = (torch.tensor([0, 0, 1]), torch.tensor([4, 1, 2]))
LABELS = torch.tensor([2, 0, 2])


def test_unmatched_queries_have_no_class_in_focal_classification(rng: torch.Generator) -> None:
    logits = torch.randn(2, 5, 3, generator=rng)
    targets = torch.zeros(2, 5, 3)
    targets[0, 4, 2] = targets[0, 1, 0] = targets[1, 2, 2] = 1
    expected = torchvision_focal_loss(logits, targets, alpha=0.3, gamma=1.5, reduction="sum") / 7
    torch.testing.assert_close(
        FocalClassification(alpha=0.3, gamma=1.5)(logits, MATCHED, LABELS, torch.tensor(7.0)), expected
    )


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_focal_classification_has_the_gradient_of_the_focal_loss(scale: float, rng: torch.Generator) -> None:
    logits = (torch.randn(2, 5, 3, generator=rng, dtype=torch.float64) * scale).requires_grad_()
    targets = torch.zeros_like(logits)
    targets[(*MATCHED, LABELS)] = 1
    expected = sigmoid_focal_loss(logits, targets).sum() / 7
    found = FocalClassification()(logits, MATCHED, LABELS, torch.tensor(7.0))
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients)


def test_focal_classification_rejects_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"alpha .* got 1\.5"):
        FocalClassification(alpha=1.5)
    with pytest.raises(ValueError, match=r"gamma .* got -1\.0"):
        FocalClassification(gamma=-1.0)


def test_unmatched_queries_have_the_last_class_in_softmax_classification(rng: torch.Generator) -> None:
    logits = torch.randn(2, 5, 4, generator=rng)
    classes = torch.tensor([[3, 0, 3, 3, 2], [3, 3, 2, 3, 3]])
    weight = torch.where(classes == 3, 0.2, 1.0)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    expected = (cross_entropy * weight.flatten()).sum() / weight.sum()
    found = SoftmaxClassification(no_object_weight=0.2)(logits, MATCHED, LABELS, torch.tensor(7.0))
    torch.testing.assert_close(found, expected)
