"""The command `export`."""

import json
import sys

from jaxtyping import Float
from pydantic import BaseModel, Field, PositiveFloat
from pydantic_settings import CliPositionalArg, CliToggleFlag
from torch import Tensor

from deformdetr._text import table
from deformdetr.cli._options import RUN, UserPath, UserSource
from deformdetr.data import (
    AnyDataConfig,
    DatasetError,
    LabelMap,
    ShapesConfig,
    build_dataset,
    draw_shapes,
    load_image,
    prepare_for_evaluation,
)
from deformdetr.engine import load_run
from deformdetr.integrations.export import ExportReport, OnnxSampling, export_onnx

# (height, width) of drawn images for the comparison.
_SIZES = ((320, 256), (224, 320))


class Export(BaseModel):
    """Write a trained model as an ONNX file, and check that it gives the same results.

    The file takes any number of images of any size. It is compared with the model on images of several sizes, alone and
    in a batch, and is not kept if they differ.
    """

    run: CliPositionalArg[UserSource] = Field(description=RUN)
    onnx: UserPath = Field(description="File to write, .onnx.")
    sampling: OnnxSampling = Field(default="grid_sample", description="Operators of deformable attention.")
    opset: int = Field(default=18, description="Version of the ONNX operator set, 17 or newer.")
    postprocess: CliToggleFlag[bool] = Field(
        default=False,
        description="Also return boxes in pixels, scores, labels and masks.",
    )
    images: list[UserPath] = Field(
        default=[], description="Images for the comparison; by default two evaluation images."
    )
    tolerance: PositiveFloat = Field(
        default=1e-3,
        description="Largest allowed difference of a logit or a mask, and of a box as a fraction of the image.",
    )
    force: CliToggleFlag[bool] = Field(default=False, description="Replace the file if it exists.")

    def execute(self) -> int:
        """Export the model."""
        _, checkpoint = load_run(self.run)
        data = checkpoint.experiment.data
        report = export_onnx(
            checkpoint.build(),
            self.onnx,
            sampling=self.sampling,
            opset=self.opset,
            postprocess=checkpoint.experiment.model.build_postprocess() if self.postprocess else None,
            images=[prepare_for_evaluation(load_image(path, data.decode), data) for path in self.images]
            or (_own_images(data, checkpoint.label_map) if checkpoint.has_dataset else _shapes(data)),
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


def _own_images(data: AnyDataConfig, label_map: LabelMap) -> list[Float[Tensor, "3 _ _"]]:
    """Return the first evaluation images, or drawn ones if those are not available."""
    if isinstance(data, ShapesConfig):
        return _shapes(data)
    try:
        dataset = build_dataset(data.replace(label_map=label_map), "val")
    except (DatasetError, OSError) as error:
        reason = str(error).splitlines()[0]
        print(f"comparing on drawn shapes, because the evaluation images are not available: {reason}", file=sys.stderr)
        return _shapes(data)
    return [dataset[index][0] for index in range(min(len(dataset), len(_SIZES)))]


def _shapes(data: AnyDataConfig) -> list[Float[Tensor, "3 _ _"]]:
    """Return small drawn images, which are as good for the comparison as large ones, and faster."""
    config = ShapesConfig(num_val=len(_SIZES), image_size=max(max(size) for size in _SIZES))
    _, pictures = draw_shapes(config, "val")
    unresized = data.replace(eval_short_side=None)
    return [
        prepare_for_evaluation(picture[:, :height, :width], unresized)
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
