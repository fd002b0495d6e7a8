"""Reports of loading and converting checkpoints, to print."""

from dataclasses import dataclass, field

from deformdetr.integrations._checkpoints._format import CheckpointFormat
from deformdetr.integrations._checkpoints._translation import Loss, Step


@dataclass(frozen=True)
class CheckpointReport:
    """How a checkpoint fits a model, in the names of this library.

    Examples:
        >>> print(CheckpointReport(format="original", loaded=["level_embed"], missing=["class_head.bias"]))
        original checkpoint: 1 entries loaded
        1 missing from the checkpoint:
          class_head.bias
    """

    format: CheckpointFormat
    """Format of the checkpoint."""
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Entries of the model only, which keep their values."""
    unexpected: list[str] = field(default_factory=list)
    """Entries of the checkpoint only, which are not used."""
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Different shapes in the checkpoint and in the model, whose entries keep their values."""
    dropped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """The same for class heads, dropped because of `drop_class_head`."""
    new: list[str] = field(default_factory=list)
    """Entries of a mask head that the checkpoint lacks, allowed by `new_mask_head`."""
    advice: list[str] = field(default_factory=list)
    """How to build a model that the checkpoint fits."""
    remarks: tuple[str, ...] = ()
    """Reasons why predictions may differ from those of the original implementation."""
    place: str = ""
    """Entry and prefix under which the weights were found; empty for a bare state dict."""
    left_aside: tuple[str, ...] = ()
    """Places of other weights, such as averages, and tensors without the weights' prefix."""

    @property
    def fits(self) -> bool:
        """Whether all entries of checkpoint and model match, except for dropped and new heads."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.format} checkpoint: {len(self.loaded)} entries loaded"]
        listed = {
            "missing from the checkpoint": self.missing,
            "unknown to the model": self.unexpected,
            "of a new mask head": self.new,
        }
        for title, names in listed.items():
            if names:
                lines += [f"{len(names)} {title}:", *_shorten([f"  {name}" for name in names])]
        for title, shapes in (("of another shape", self.mismatched), ("dropped class heads", self.dropped)):
            if shapes:
                rows = [
                    f"  {name}: {theirs} in the checkpoint, {ours} in the model"
                    for name, (theirs, ours) in shapes.items()
                ]
                lines += [f"{len(shapes)} {title}:", *_shorten(rows)]
        return "\n".join([*lines, *_place_lines(self.place, self.left_aside), *self.remarks, *self.advice])


@dataclass(frozen=True)
class ConversionReport:
    """How a state dict was converted from one format to another."""

    source: CheckpointFormat
    target: CheckpointFormat
    model: str
    """Description of the model."""
    read: int
    """Number of entries in the source."""
    written: int
    """Number of entries in the result."""
    steps: list[Step]
    """Steps of the conversion, by way of this library's names."""
    losses: list[Loss]
    """Values that are missing from the result."""
    remarks: tuple[str, ...] = ()
    """Reasons why predictions may differ between the implementations."""
    place: str = ""
    """Entry and prefix under which the weights were found; empty for a bare state dict."""
    left_aside: tuple[str, ...] = ()
    """Places of other weights, such as averages, and tensors without the weights' prefix."""

    @property
    def lossless(self) -> bool:
        """Whether the result has every value other than zero that a model uses."""
        return all(loss.largest == 0 or loss.why == "unused" for loss in self.losses)

    @property
    def unasked(self) -> list[Loss]:
        """Losses that the caller did not ask for."""
        return [loss for loss in self.losses if loss.largest != 0 and loss.why == "no place"]

    def __str__(self) -> str:
        lines = [f"{self.source} to {self.target}, {self.model}", f"{self.read} entries read, {self.written} written"]
        lines += [f"  {step.what}: {step.before} to {step.after} entries" for step in self.steps]
        for loss in self.losses:
            lines.append(f"left out: {loss.what}, {len(loss.names)} entries, largest value {loss.largest:.3g}")
            lines += _shorten([f"  {name}" for name in loss.names], limit=8)
        lines += ["nothing lost"] * self.lossless
        return "\n".join([*lines, *_place_lines(self.place, self.left_aside), *self.remarks])


def _place_lines(place: str, left_aside: tuple[str, ...]) -> list[str]:
    lines = [f"weights from {place}"] * bool(place)
    return lines + [f"other weights left aside: {'; '.join(left_aside)}"] * bool(left_aside)


def _shorten(rows: list[str], limit: int = 20) -> list[str]:
    return rows if len(rows) <= limit else [*rows[:limit], f"  and {len(rows) - limit} more"]
