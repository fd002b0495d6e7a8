"""What was loaded, and what was converted."""

from dataclasses import dataclass, field

from deformdetr.integrations._lineage import CheckpointFormat
from deformdetr.integrations._translation import Loss, Step


@dataclass(frozen=True)
class CheckpointReport:
    """How a checkpoint fitted a model, in the model's own names."""

    format: CheckpointFormat
    """Whose names the checkpoint had."""
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """In the model only: left as they were."""
    unexpected: list[str] = field(default_factory=list)
    """In the checkpoint only: not used."""
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Shapes in the checkpoint and in the model, where they differ: left as they were."""
    dropped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """The same for class heads that were dropped on request."""
    new: list[str] = field(default_factory=list)
    """A mask head that the checkpoint was allowed to lack: left as it was."""
    advice: list[str] = field(default_factory=list)
    """How to build a model that the checkpoint fits, where its variant is another one."""
    remarks: tuple[str, ...] = ()
    """How predictions may differ from those of the implementation that the checkpoint comes from."""
    place: str = ""
    """Entry and prefix under which the weights were; empty for a state dict by itself."""
    left_aside: tuple[str, ...] = ()
    """Places of other weights, such as an average, and tensors without the weights' prefix."""

    @property
    def fits(self) -> bool:
        """Whether everything in the checkpoint and in the model found its counterpart, dropped and new heads aside."""
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
        return "\n".join([*lines, *_say_place(self.place, self.left_aside), *self.remarks, *self.advice])


@dataclass(frozen=True)
class ConversionReport:
    """What became of a state dict on its way from one format to another."""

    source: CheckpointFormat
    """Whose names it had."""
    target: CheckpointFormat
    model: str
    """Which model it holds, in words."""
    read: int
    """Entries before."""
    written: int
    """Entries after."""
    steps: list[Step]
    """What was done in between, by way of this library's names."""
    losses: list[Loss]
    """What is not in the result."""
    remarks: tuple[str, ...] = ()
    """How predictions may differ between the implementations."""
    place: str = ""
    """Entry and prefix under which the weights were; empty for a state dict by itself."""
    left_aside: tuple[str, ...] = ()
    """Places of other weights, such as an average, and tensors without the weights' prefix."""

    @property
    def lossless(self) -> bool:
        """Whether every value that a model uses is in the result, values of zero aside."""
        return all(loss.largest == 0 or loss.why == "unused" for loss in self.losses)

    @property
    def unasked(self) -> list[Loss]:
        """What is lost though the caller did not ask for it."""
        return [loss for loss in self.losses if loss.largest != 0 and loss.why == "no place"]

    def __str__(self) -> str:
        lines = [f"{self.source} to {self.target}, {self.model}", f"{self.read} entries read, {self.written} written"]
        lines += [f"  {step.what}: {step.before} to {step.after} entries" for step in self.steps]
        for loss in self.losses:
            lines.append(f"left out: {loss.what}, {len(loss.names)} entries, largest value {loss.largest:.3g}")
            lines += _shorten([f"  {name}" for name in loss.names], limit=8)
        lines += ["nothing lost"] * self.lossless
        return "\n".join([*lines, *_say_place(self.place, self.left_aside), *self.remarks])


def _say_place(place: str, left_aside: tuple[str, ...]) -> list[str]:
    lines = [f"weights from {place}"] * bool(place)
    return lines + [f"other weights left aside: {'; '.join(left_aside)}"] * bool(left_aside)


def _shorten(rows: list[str], limit: int = 20) -> list[str]:
    return rows if len(rows) <= limit else [*rows[:limit], f"  and {len(rows) - limit} more"]
