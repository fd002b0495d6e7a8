"""Whole models: predictions in evaluation, or one step of training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.cases import Direction, Dtype, ModelCase
from benchmarks.problems.contender import Candidate, Contender, Problem
from benchmarks.problems.models import Batch, HuggingFace, Model, Ours, describe, draw_batch

BASELINE = "hugging_face"
# Of predictions and of gradients, through fifty convolutions and twelve layers of attention. Gradients of single layers
# move by up to two percent where rounding decides on which side of its kink a ReLU or a bilinear sample lies.
TOLERANCES: dict[Direction, float] = {"forward": 1e-3, "training_step": 0.1}
_LEARNING_RATE = 1e-5
_LARGEST_GRADIENT = 0.1

MODELS: tuple[tuple[str, Callable[..., Model]], ...] = (("ours", Ours), ("hugging_face", HuggingFace))


def prepare_model(
    case: ModelCase,
    dtype: Dtype,
    direction: Direction,
    device: str,
    seed: int,
    models: Sequence[tuple[str, Callable[..., Model]]] = MODELS,
) -> Problem:
    """Draw a batch; the models, of some hundred megabytes, are built when they are needed.

    They are compared with ours in float64 at a quarter of the image's sides, in evaluation, without TF32 and autocast:
    predictions, or the loss and all gradients. What is timed has the full size; `bfloat16` means autocast.
    """
    config = describe(case)
    batch = draw_batch(case, config.num_classes, device, seed)

    @cache
    def expected() -> dict[str, Tensor]:
        model = Ours(config, device, seed)
        model.module.double()
        return _results(model, batch.shrunk(torch.float64), direction)

    def build(make: Callable[..., Model]) -> Contender:
        model = make(config, device, seed)
        autocast = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
        step = _TrainingStep(model, batch, autocast)

        def predict() -> None:
            with torch.no_grad(), autocast:
                model.predict(batch)

        def outputs() -> dict[str, Tensor]:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return _results(model, batch.shrunk(torch.float32), direction)

        return Contender(
            call=predict if direction == "forward" else step,
            outputs=outputs,
            expected=expected,
            note="compared in float32, timed under autocast" if dtype == "bfloat16" else "",
        )

    return Problem(
        candidates=tuple(Candidate(name, partial(build, make)) for name, make in models),
        baseline=BASELINE,
        tolerance=TOLERANCES[direction],
        clock="wall",
    )


class _TrainingStep:
    """Predictions with dropout, losses, gradients, clipping and a step of AdamW."""

    def __init__(self, model: Model, batch: Batch, autocast: AbstractContextManager[object]) -> None:
        self._model = model
        self._batch = batch
        self._autocast = autocast
        self._optimizer: torch.optim.AdamW | None = None

    def __call__(self) -> None:
        module = self._model.module
        if self._optimizer is None:
            module.train()
            trained = [each for each in module.parameters() if each.requires_grad]
            self._optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE)
        with self._autocast:
            loss = self._model.loss(self._batch)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's has no annotations.
        torch.nn.utils.clip_grad_norm_(module.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _results(model: Model, batch: Batch, direction: Direction) -> dict[str, Tensor]:
    if direction == "forward":
        with torch.no_grad():
            outputs = model.predict(batch)
        # Whose score is how much higher than the next one's decides the order of two-stage queries, and nothing else.
        return {name: tensor.sort(dim=1).values for name, tensor in outputs.items()}
    loss = model.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's has no annotations.
    gradients = {name: tensor.clone() for name, tensor in model.gradients().items()}
    model.module.zero_grad()
    return {"loss": loss.detach()} | gradients
