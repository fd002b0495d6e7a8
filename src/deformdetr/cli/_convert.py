"""Converting checkpoints between implementations."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg, CliToggleFlag

from deformdetr.cli._tables import table
from deformdetr.integrations import COCO_CATEGORY_IDS, CheckpointFormat, ConversionReport, convert_checkpoint


class Convert(BaseModel):
    """Convert a checkpoint to the names and the layout of another implementation.

    The format of SOURCE is recognised. What the other format has no place for is listed with its size.
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
        )
        _show(report)
        print(f"{self.target}: {self.target.stat().st_size / 1e6:.1f} MB")
        return 0


def _show(report: ConversionReport) -> None:
    print(f"recognised: {report.source}, {report.model}")
    steps = [
        (f"read as {report.source}", "", str(report.read)),
        *((step.what, str(step.before), str(step.after)) for step in report.steps),
        (f"written as {report.target}", "", str(report.written)),
    ]
    print(table(("step", "entries before", "after"), steps))
    if report.losses:
        losses = [
            (
                f"{loss.what}: {', '.join(loss.names[:4])}{', ...' * (len(loss.names) > 4)}",
                str(len(loss.names)),
                f"{loss.largest:.3g}",
            )
            for loss in report.losses
        ]
        print(table(("left out", "entries", "largest value"), losses))
    if report.lossless:
        print("nothing lost")
    for remark in report.remarks:
        print(f"note: {remark}")
