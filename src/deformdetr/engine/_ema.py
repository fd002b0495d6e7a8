"""The exponential moving average of a model's weights."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deformdetr.engine._train_config import EMAConfig

# PyTorch gives it no types.
_moving_average: Callable[[float], Callable[..., None]] = get_ema_multi_avg_fn


class WeightAverage:
    """A copy of a model whose parameters are the moving average of the model's. Buffers are the model's latest.

    Args:
        model: Model to average, before it is wrapped or changed for training. It is copied.
        config: Settings of the average.

    Attributes:
        module: The copy, in evaluation mode.
    """

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self._decay = config.decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._average)
        self.module: nn.Module = self._averaged.module.eval().requires_grad_(False)
        self.num_updates = 0

    def update(self, model: nn.Module) -> None:
        """Average the current parameters of the model, after an optimizer step. The first replace the initial ones."""
        self._averaged.update_parameters(model)
        self.num_updates += 1

    def resume(self, num_updates: int) -> None:
        """Continue after so many updates. The module must have the weights of that time."""
        self.num_updates = num_updates
        self._averaged.n_averaged.fill_(num_updates)

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        _moving_average(decay)(averaged, current, self.num_updates)
