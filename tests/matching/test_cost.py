import pytest
import torch

from deformdetr.losses import sigmoid_focal_loss
from deformdetr.matching import FocalClassCost, SoftmaxClassCost


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.7, 1.5)])
def test_focal_cost_is_the_positive_minus_the_negative_loss(alpha: float, gamma: float, rng: torch.Generator) -> None:
    logits = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    labels = torch.tensor([3, 0, 3])
    losses = [
        sigmoid_focal_loss(logits, torch.full_like(logits, value), alpha=alpha, gamma=gamma) for value in (1.0, 0.0)
    ]
    expected = (losses[0] - losses[1])[:, labels]
    torch.testing.assert_close(FocalClassCost(alpha=alpha, gamma=gamma)(logits, labels), expected, rtol=1e-5, atol=1e-6)


def test_focal_cost_of_extreme_logits_is_finite() -> None:
    cost = FocalClassCost()(torch.tensor([[1e4], [-1e4]]), torch.tensor([0]))
    assert cost.isfinite().all()
    assert cost[0, 0] < cost[1, 0]


def test_softmax_cost_is_the_negative_probability(rng: torch.Generator) -> None:
    logits = torch.randn(6, 4, generator=rng)
    labels = torch.tensor([2, 2, 1])
    torch.testing.assert_close(SoftmaxClassCost()(logits, labels), -logits.softmax(1)[:, labels])


@pytest.mark.parametrize("cost", [FocalClassCost(), SoftmaxClassCost()])
def test_costs_take_stacked_layers_and_no_targets(
    cost: FocalClassCost | SoftmaxClassCost, rng: torch.Generator
) -> None:
    logits = torch.randn(2, 6, 4, generator=rng)
    labels = torch.tensor([1, 3])
    torch.testing.assert_close(cost(logits, labels)[1], cost(logits[1], labels))
    assert cost(logits, labels[:0]).shape == (2, 6, 0)
