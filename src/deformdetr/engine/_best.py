"""The best evaluation of a run so far, and the end of a run without better ones."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, NonNegativeInt

from deformdetr.engine._train_config import EarlyStoppingConfig


class _State(BaseModel):
    """What `BestScore` needs to continue."""

    score: tuple[float, float] | None
    reference: float | None
    waited: NonNegativeInt


class BestScore:
    """Compare evaluations by the AP of boxes, then by that of masks.

    Args:
        early_stopping: When to end the run, None for never.

    Attributes:
        score: The highest APs of boxes and masks; None before the first evaluation of a dataset with objects.
        waited: Number of evaluations since the last sufficient rise of AP.
    """

    def __init__(self, early_stopping: EarlyStoppingConfig | None = None) -> None:
        self._early_stopping = early_stopping
        self._reference: float | None = None
        self.score: tuple[float, float] | None = None
        self.waited = 0

    @property
    def ap(self) -> float | None:
        """The highest AP of boxes."""
        return None if self.score is None else self.score[0]

    @property
    def has_ended(self) -> bool:
        """Whether the run is to end early."""
        return self._early_stopping is not None and self.waited >= self._early_stopping.patience

    def update(self, metrics: Mapping[str, Any]) -> bool:
        """Take the metrics of an evaluation, and return whether it is the best so far.

        Without any object, there is no AP and nothing to compare.
        """
        if metrics["AP"] is None:
            return False
        score = metrics["AP"], metrics.get("segm", {}).get("AP") or 0.0
        min_rise = 0.0 if self._early_stopping is None else self._early_stopping.min_rise
        if self._reference is None or score[0] > self._reference + min_rise:
            self._reference, self.waited = score[0], 0
        else:
            self.waited += 1
        is_best = self.score is None or score > self.score
        self.score = score if is_best else self.score
        return is_best

    def state(self) -> dict[str, Any]:
        """Return the state for resuming."""
        return {"score": self.score, "reference": self._reference, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any] | tuple[float, float] | None) -> None:
        """Restore a state that `state` returned, or the score alone, which older runs have saved."""
        if not isinstance(state, Mapping):
            state = {"score": state, "reference": None if state is None else state[0], "waited": 0}
        valid = _State.model_validate(state)
        self.score, self._reference, self.waited = valid.score, valid.reference, valid.waited
