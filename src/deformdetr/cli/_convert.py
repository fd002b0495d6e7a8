"""Converting checkpoints between implementations."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg, CliToggleFlag
from rich.console import Console
from rich.table import Table

from deformdetr.integrations import COCO_CATEGORY_IDS, CheckpointFormat, ConversionReport, convert_checkpoint


class Convert(BaseModel):
    """Convert a checkpoint to the names and the layout of another implementation.

    The format of SOURCE is recognized. Where the other format has no place for something, that is listed with its
    size, and nothing is written unless --allow_loss is given.
    """

    source: CliPositionalArg[Path] = Field(description="A .safetensors file, or one that torch.save has written.")
    target: CliPositionalArg[Path] = Field(description="File to write: .safetensors, or .pth, .pt, .bin or .ckpt.")
    to: CheckpointFormat = Field(description="Whose names it gets.")
    coco_91_to_80: CliToggleFlag[bool] = Field(
        default=False,
        description="Turn heads of 91 classes, which are COCO's category ids, into heads of its 80 categories.",
    )
    backbone: Literal["timm_backbone", "resnet"] = Field(
        default="timm_backbone", description="Which ResNet a model of transformers has: timm's, or its own."
    )
    share_heads: bool | None = Field(
        default=None, description="Whether decoder layers share their heads, where SOURCE does not tell."
    )
    allow_loss: CliToggleFlag[bool] = Field(
        default=False, description="Go on without what the other format has no place for."
    )
    force: CliToggleFlag[bool] = Field(default=False, description="Replace TARGET if it exists.")

    def execute(self) -> int:
        """Convert it."""
        report = convert_checkpoint(
            self.source,
            self.target,
            self.to,
            overwrite=self.force,
            classes=COCO_CATEGORY_IDS if self.coco_91_to_80 else None,
            backbone=self.backbone,
            share_heads=self.share_heads,
            allow_loss=self.allow_loss,
        )
        _show(report)
        print(f"{self.target}: {self.target.stat().st_size / 1e6:.1f} MB")
        return 0


def _show(report: ConversionReport) -> None:
    console = Console(highlight=False)
    console.print(f"recognized: {report.source}, {report.model}", markup=False)
    if report.place:
        console.print(f"weights from {report.place}", markup=False)
    if report.left_aside:
        console.print(f"other weights left aside: {'; '.join(report.left_aside)}", markup=False)
    steps = Table("step", "entries before", "after")
    for column in steps.columns[1:]:
        column.justify = "right"
    steps.add_row(f"read as {report.source}", "", str(report.read))
    for step in report.steps:
        steps.add_row(step.what, str(step.before), str(step.after))
    steps.add_row(f"written as {report.target}", "", str(report.written))
    console.print(steps)
    if report.losses:
        losses = Table("left out", "entries", "largest value")
        for loss in report.losses:
            names = ", ".join(loss.names[:4]) + ", ..." * (len(loss.names) > 4)
            losses.add_row(f"{loss.what}: {names}", str(len(loss.names)), f"{loss.largest:.3g}")
        console.print(losses)
    if report.lossless:
        console.print("nothing lost")
    for remark in report.remarks:
        console.print(f"note: {remark}", markup=False)
