"""The command `convert`."""

from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg, CliToggleFlag

from deformdetr._text import table
from deformdetr.cli._options import UserPath, UserSource
from deformdetr.integrations import COCO_CATEGORY_IDS, CheckpointFormat, ConversionReport, convert_checkpoint


class Convert(BaseModel):
    """Convert a checkpoint to the names and the layout of another implementation.

    The format of SOURCE is recognized. Weights that the other format cannot hold are listed with their sizes, and
    nothing is written unless --allow_loss is given.
    """

    source: CliPositionalArg[UserSource] = Field(description="Path, URL, or user/name on the Hugging Face Hub.")
    target: CliPositionalArg[UserPath] = Field(description="File to write: .safetensors, or .pth, .pt, .bin or .ckpt.")
    to: CheckpointFormat = Field(description="Format of TARGET.")
    coco_91_to_80: CliToggleFlag[bool] = Field(
        default=False,
        description="Convert class heads of COCO's 91 ids to its 80 classes.",
    )
    backbone: Literal["timm_backbone", "resnet"] = Field(
        default="timm_backbone", description="ResNet of a transformers model: timm's, or its own."
    )
    share_heads: bool | None = Field(
        default=None, description="Whether layers share heads, if SOURCE does not determine it."
    )
    allow_loss: CliToggleFlag[bool] = Field(
        default=False, description="Leave out weights that the other format cannot hold."
    )
    force: CliToggleFlag[bool] = Field(default=False, description="Replace TARGET if it exists.")

    def execute(self) -> int:
        """Convert the checkpoint."""
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
    print(f"recognized: {report.source}, {report.model}")
    if report.place:
        print(f"weights from {report.place}")
    if report.left_aside:
        print(f"other weights left aside: {'; '.join(report.left_aside)}")
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
