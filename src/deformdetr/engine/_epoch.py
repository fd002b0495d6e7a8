"""What an epoch that is not finished has done so far, for resuming it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class EpochProgress:
    """Counts and sums over the optimizer steps of an epoch, in one process.

    Attributes:
        steps: Number of optimizer steps.
        batches: Number of batches.
        seconds: Time that they took.
        totals: Sums of the losses over the steps, by name.

    Examples:
        >>> from deformdetr.engine._epoch import EpochProgress
        >>> progress = EpochProgress()
        >>> progress.add({"loss": 4.0}, batches=2, seconds=1.0)
        >>> progress.add({"loss": 2.0}, batches=2, seconds=1.0)
        >>> progress.means()
        {'loss': 3.0}
    """

    steps: int = 0
    batches: int = 0
    seconds: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)

    def add(self, losses: Mapping[str, float], *, batches: int, seconds: float) -> None:
        """Add a step."""
        self.steps += 1
        self.batches += batches
        self.seconds += seconds
        self.totals = {name: self.totals.get(name, 0.0) + value for name, value in losses.items()}

    def means(self) -> dict[str, float]:
        """Return the mean losses of the steps."""
        return {name: total / self.steps for name, total in self.totals.items()}

    def state(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)
