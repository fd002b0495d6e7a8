"""Sizes of optimizer steps that accumulate the gradients of several batches."""

from typing import NamedTuple


class StepCounts(NamedTuple):
    """What the losses of all batches of an optimizer step are divided by.

    Given these, `SetCriterion` returns a batch's part of the losses of the whole step, so that the losses, and the
    gradients, of its batches add up to those of one large batch.

    Examples:
        >>> counts = StepCounts(boxes_per_image=(3, 0, 1))
        >>> counts.num_boxes
        4
        >>> counts.num_matched(num_queries=2)
        3
    """

    boxes_per_image: tuple[int, ...]
    """Number of targets of every image of the step, on this process."""
    denoising_queries: int = 0
    """Number of denoising queries with a target; `num_positives` of the denoising module, summed over the batches."""

    @property
    def num_boxes(self) -> int:
        """Number of targets."""
        return sum(self.boxes_per_image)

    def num_matched(self, num_queries: int) -> int:
        """Return the number of queries that are matched if every image has `num_queries`."""
        return sum(min(count, num_queries) for count in self.boxes_per_image)
