"""Training steps: forward, backward and optimizer, with checks that losses and gradients are finite."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from deformdetr.engine._ema import WeightAverage
from deformdetr.engine._errors import TrainingError
from deformdetr.engine._gradient_checkpointing import enable_gradient_checkpointing
from deformdetr.engine._inference import autocast
from deformdetr.engine._optimizer import build_optimizer, set_learning_rate
from deformdetr.engine._processes import Processes
from deformdetr.engine._train_config import TrainConfig
from deformdetr.engine._trainable import freeze_all_but
from deformdetr.losses import SetCriterion, StepCounts
from deformdetr.models import DETR, DeformableDETR, needs_targets
from deformdetr.structures import ImageBatch, Target

Batch: TypeAlias = tuple[ImageBatch, Sequence[Target]]


class Learner:
    """A model with its criterion, optimizer and gradient scaler, and the moving average of its weights.

    A loss or gradient that is not finite stops training. The norm of a gradient is read together with the next loss,
    because each transfer from a GPU makes it wait. `check_gradient` reads it at once.

    Args:
        model: Model to train. It is moved to the device of this process.
        criterion: Criterion of its predictions.
        config: Settings of training.
        processes: The processes that train together.

    Attributes:
        module: The model, without the wrapper for several processes.
    """

    def __init__(
        self, model: DeformableDETR | DETR, criterion: SetCriterion, config: TrainConfig, processes: Processes
    ) -> None:
        self.module = model.to(processes.device)
        self._average = None if config.ema is None else WeightAverage(self.module, config.ema)
        self._frozen = freeze_all_but(self.module, config.trainable)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.module)
        if config.compile:
            # In place, so that the names of parameters stay.
            self.module.compile()
        self.device = processes.device
        self._processes = processes
        self._config = config
        self._criterion = criterion.to(self.device)
        self._optimizer = build_optimizer(self.module, config)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self._model: nn.Module = processes.prepare(self.module)
        self._gradient_norm: Tensor | None = None
        self._where = ""

    @property
    def result(self) -> nn.Module:
        """The model to evaluate and to save: with the averaged weights, if there are any."""
        return self.module if self._average is None else self._average.module

    def start_epoch(self) -> None:
        """Switch to training mode, except for frozen modules."""
        self._model.train()
        for module in self._frozen:
            module.training = False

    def learn(self, batches: Sequence[Batch], *, step: int) -> dict[str, float]:
        """Run forward and backward for all batches of an optimizer step, accumulating the gradient.

        The gradient is that of one batch of all images. For this, losses are divided by the number of boxes of the
        whole step, and of all processes.

        Args:
            batches: Images, and the target of each image.
            step: Number of the optimizer step, from 1, for messages.

        Returns:
            The total of the step as `loss`, and its unweighted parts.

        Raises:
            TrainingError: If a loss, or the gradient of the previous step, is not finite.
        """
        counts = self._count(batches) if len(batches) > 1 else None
        found = []
        for index, (images, targets) in enumerate(batches):
            with self._processes.exchange(self._model, enabled=index == len(batches) - 1):
                found.append(self._learn_batch(images, targets, step, counts))
        return {
            # Losses of batches are parts of those of the step. Other values are statistics.
            name: sum(values[name] for values in found) / (1 if name.startswith("loss") else len(found))
            for name in found[0]
        }

    def _learn_batch(
        self, images: ImageBatch, targets: Sequence[Target], step: int, counts: StepCounts | None
    ) -> dict[str, float]:
        where = f"step {step}, images {[target.get('image_id', '?') for target in targets]}"
        images = images.to(self.device, non_blocking=True)
        targets = [to_device(target, self.device) for target in targets]
        for_denoising = {"targets": targets} if needs_targets(self.module) else {}
        with autocast(self.device, self._config.precision):
            outputs = self._model(images.images, images.padding_mask, **for_denoising)
        try:
            losses = self._criterion(outputs, targets, step=counts)
        except ValueError as error:
            self.check_gradient()
            raise TrainingError(f"{where}: {error}") from error
        losses = {"loss": self._criterion.total(losses), **losses}
        values = self._read(losses, where)
        self._scaler.scale(losses["loss"]).backward()
        self._where = where
        return values

    def _count(self, batches: Sequence[Batch]) -> StepCounts:
        denoising = self.module.denoising if isinstance(self.module, DeformableDETR) else None
        return StepCounts(
            boxes_per_image=tuple(len(target["labels"]) for _, targets in batches for target in targets),
            denoising_queries=0 if denoising is None else sum(denoising.num_positives(each) for _, each in batches),
        )

    def step(self, learning_rate_factor: float) -> None:
        """Clip the gradient and run the optimizer."""
        set_learning_rate(self._optimizer, learning_rate_factor)
        self._scaler.unscale_(self._optimizer)
        limit = math.inf if self._config.max_grad_norm is None else self._config.max_grad_norm
        self._gradient_norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.module)
        self._optimizer.zero_grad(set_to_none=True)

    def check_gradient(self) -> None:
        """Check the latest gradient. Call this before saving.

        Raises:
            TrainingError: If it is not finite.
        """
        if self._gradient_norm is not None:
            self._check_norm(float(self._gradient_norm))

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate of each parameter group."""
        return {group["name"]: group["lr"] for group in self._optimizer.param_groups}

    def state(self) -> dict[str, Any]:
        """Return the state for resuming, apart from the weights of `result`."""
        state: dict[str, Any] = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        if self._average is not None:
            state |= {"model": self.module.state_dict(), "averaged": self._average.num_updates}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned. The model must have the weights that `result` had."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.resume(state["averaged"])
            try:
                self.module.load_state_dict(state["model"])
            except RuntimeError as error:
                raise ValueError(str(error)) from error

    def _read(self, losses: dict[str, Tensor], where: str) -> dict[str, float]:
        names = [name for name in losses if not name.startswith("cardinality_error")]
        tensors = [losses[name].detach() for name in names]
        if self._gradient_norm is not None:
            tensors.append(self._gradient_norm.to(tensors[0].dtype))
        numbers = torch.stack(tensors).tolist()
        values = dict(zip(names, numbers, strict=False))
        if self._gradient_norm is not None:
            self._check_norm(numbers[-1])
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        if wrong:
            raise TrainingError(f"{where}: the loss is not finite: {wrong}")
        return values

    def _check_norm(self, norm: float) -> None:
        # The gradient scaler skips steps with an infinite gradient, and lowers its scale.
        if not math.isfinite(norm) and not self._scaler.is_enabled():
            raise TrainingError(f"{self._where}: the norm of the gradient is {norm}, although the loss is finite")


def to_device(target: Target, device: torch.device) -> Target:
    """Move the tensors that the criterion reads to a device."""
    moved: Target = {
        **target,
        "boxes": target["boxes"].to(device, non_blocking=True),
        "labels": target["labels"].to(device, non_blocking=True),
    }
    if "masks" in target:
        moved["masks"] = target["masks"].to(device, non_blocking=True)
    return moved
