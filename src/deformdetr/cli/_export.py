"""Exporting trained models."""

import json
import sys
from pathlib import Path

from jaxtyping import Float
from pydantic import BaseModel, Field, PositiveFloat
from pydantic_settings import CliPositionalArg, CliToggleFlag
from torch import Tensor

from deformdetr.cli._tables import table
from deformdetr.data import (
    AnyDataConfig,
    DataConfig,
    DatasetError,
    LabelMap,
    ShapesConfig,
    build_dataset,
    draw_shapes,
    eval_transforms,
    load_image,
    make_sample,
    split_sample,
)
from deformdetr.engine import load_run
from deformdetr.integrations.export import ExportReport, Sampling, export_onnx

# (height, width) of the pictures to compare on where none are given.
_SIZES = ((320, 256), (224, 320))


class Export(BaseModel):
    """Write a trained model as an ONNX file, once onnxruntime computes what the model does.

    It takes images of any size and number. The file is run beside the model on images of several sizes, alone and in
    a batch; one that differs is not kept.
    """

    run: CliPositionalArg[Path] = Field(description="Run directory, or one of its checkpoints.")
    onnx: Path = Field(description="File to write, .onnx.")
    sampling: Sampling = Field(default="grid_sample", description="What deformable attention becomes.")
    opset: int = Field(default=18, description="Version of ONNX's operators, 17 or newer.")
    postprocess: CliToggleFlag[bool] = Field(
        default=False,
        description="Let the file give boxes in pixels, scores, labels and masks, too.",
    )
    images: list[Path] = Field(default=[], description="Image files to compare on; by default, two to evaluate on.")
    tolerance: PositiveFloat = Field(
        default=1e-3, description="Largest difference of a logit or a mask, and of a box as a fraction of the image."
    )
    force: CliToggleFlag[bool] = Field(default=False, description="Replace the file if it exists.")

    def execute(self) -> int:
        """Export it."""
        _, checkpoint = load_run(self.run)
        data = checkpoint.experiment.data
        report = export_onnx(
            checkpoint.build(),
            self.onnx,
            sampling=self.sampling,
            opset=self.opset,
            postprocess=checkpoint.experiment.model.build_postprocess() if self.postprocess else None,
            images=[_prepare(load_image(path), data, data.eval_short_side) for path in self.images]
            or _own_images(data, checkpoint.label_map),
            tolerance=self.tolerance,
            metadata={
                "names": json.dumps(checkpoint.label_map.names),
                "image_mean": json.dumps(data.image_mean),
                "image_std": json.dumps(data.image_std),
                "short_side": json.dumps(data.eval_short_side),
                "max_size": json.dumps(data.eval_max_size),
            },
            overwrite=self.force,
        )
        _show(report)
        return 0


def _prepare(image: Tensor, data: AnyDataConfig, short_side: int | None) -> Float[Tensor, "3 _ _"]:
    """Resize and normalise an image as in evaluation."""
    transforms = eval_transforms(short_side, data.eval_max_size, data.image_mean, data.image_std)
    empty = make_sample(image, image.new_zeros(0, 4).float(), image.new_zeros(0).long())
    return split_sample(transforms(empty))[0]


def _own_images(data: AnyDataConfig, label_map: LabelMap) -> list[Float[Tensor, "3 _ _"]]:
    """Take the first pictures that the model is evaluated on, or draw some where these have gone."""
    if not isinstance(data, DataConfig):
        return _shapes(data)
    try:
        dataset = build_dataset(data.replace(label_map=label_map), "val")
    except (DatasetError, OSError) as error:
        reason = str(error).splitlines()[0]
        print(f"comparing on drawn shapes, as there are no pictures to evaluate on: {reason}", file=sys.stderr)
        return _shapes(data)
    return [dataset[index][0] for index in range(min(len(dataset), len(_SIZES)))]


def _shapes(data: AnyDataConfig) -> list[Float[Tensor, "3 _ _"]]:
    """Draw pictures of shapes in small sizes, which compare as much as large ones and sooner."""
    config = ShapesConfig(num_val=len(_SIZES), image_size=max(max(size) for size in _SIZES))
    _, pictures = draw_shapes(config, "val")
    return [
        _prepare(picture[:, :height, :width], data, None)
        for picture, (height, width) in zip(pictures, _SIZES, strict=True)
    ]


def _show(report: ExportReport) -> None:
    first = report.comparisons[0]
    optional = [name for name in ("detections", "masks") if getattr(first, name) is not None]
    rows = []
    for each in report.comparisons:
        sizes = map(str, (each.images, each.height, each.width))
        numbers = (each.logits, each.boxes, each.detections, each.masks)
        rows.append([*sizes, *(f"{number:.1e}" for number in numbers if number is not None)])
    print("largest differences between the file and the model:")
    print(table(["images", "height", "width", "logits", "boxes", *optional], rows, texts=0))
    size = report.path.stat().st_size / 1e6
    print(f"{report.path}: {size:.1f} MB, opset {report.opset}, {report.sampling}, {report.nodes} nodes")
