"""Detection in image files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from deformdetr._files import write_text
from deformdetr.data import (
    DatasetError,
    FoundImages,
    LabelMap,
    find_images,
    image_suffixes,
    load_image,
    prepare_for_evaluation,
)
from deformdetr.engine._errors import PredictionError
from deformdetr.engine._inference import MASK_THRESHOLD, detect
from deformdetr.engine._processes import Processes
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._run_directory import load_run
from deformdetr.evaluation import RunLengths, encode_masks
from deformdetr.structures import Detections, ImageBatch
from deformdetr.visualize import draw_boxes, save_image

_NAMED = 5


class ImageDetections(TypedDict):
    """Detections in one file, in descending order of scores.

    Boxes are (left, top, right, bottom) in pixels. Masks of a model with a mask head have the size of the image.
    """

    file: str
    width: int
    height: int
    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    category_ids: list[int]
    names: list[str]
    masks: NotRequired[list[RunLengths]]


class PredictResult(NamedTuple):
    """Detections of all images, and the reasons for skipped files by path."""

    images: list[ImageDetections]
    skipped: dict[str, str]


def predict(
    run: str | Path, images: Sequence[str | Path], out_dir: str | Path, *, threshold: float = 0.5
) -> PredictResult:
    """Detect objects in image files, draw them, and write `predictions.json`.

    The JSON file has all detections that post-processing keeps. Pictures show those with a score of at least
    `threshold`. They are PNG files named after their images, with a number if names collide. A file that cannot be read
    as an image is skipped, and the result and the JSON file have the reason. Files become pixels as in training: the
    run's `data.decode` says whether photographs are turned by their EXIF orientation.

    Args:
        run: A run directory, whose best checkpoint is used, or one of its checkpoints.
        images: Image files, and folders whose image files are used, with those of their subfolders.
        out_dir: Folder to write to. It is created, and pictures of an earlier call are replaced.
        threshold: Lowest score to draw.

    Raises:
        RunError: If the run does not exist.
        PredictionError: If a path does not exist, there are no images, or a picture would replace one of the images.
            Nothing is written then.

    Examples:
        >>> from deformdetr.engine import predict
        >>> result = predict("runs/detector", ["photo.jpg"], "predictions")  # doctest: +SKIP
        >>> result.images[0]["names"], result.images[0]["scores"]  # doctest: +SKIP
    """
    files, others = _find(images)
    out_dir = Path(out_dir)
    pictures = _name_pictures(files, out_dir)
    _, checkpoint = load_run(run)
    processes = Processes()
    model = checkpoint.build().to(processes.device)
    postprocess = checkpoint.experiment.model.build_postprocess(mask_threshold=MASK_THRESHOLD)
    names = checkpoint.label_map.names
    result = PredictResult([], {})
    out_dir.mkdir(parents=True, exist_ok=True)
    with ProgressDisplay("predicting", len(files)) as display:
        if others:
            named = ", ".join(map(str, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
            display.say(f"not images by their names: {len(others)} files ({named})")
        for done, (file, picture) in enumerate(zip(files, pictures, strict=True), start=1):
            try:
                image = load_image(file, checkpoint.experiment.data.decode)
            except DatasetError as error:
                result.skipped[str(file)] = str(error)
                display.say(f"skipped: {error}")
                continue
            height, width = image.shape[1:]
            batch = ImageBatch.from_images([prepare_for_evaluation(image, checkpoint.experiment.data)])
            (found,) = detect(
                model,
                postprocess,
                batch,
                [(height, width)],
                num_labels=len(names),
                precision=checkpoint.experiment.train.precision,
            )
            result.images.append(_to_json(file, (height, width), found, checkpoint.label_map))
            keep = found["scores"] >= threshold
            save_image(_draw(image, found, keep, names), picture)
            display.update(done, status=f"{int(keep.sum())} in {file.name}")
    content: dict[str, Any] = {
        "run": str(run),
        "threshold": threshold,
        "images": result.images,
        "skipped": result.skipped,
    }
    content["not_images"] = [str(file) for file in others]
    write_text(out_dir / "predictions.json", json.dumps(content, indent=1) + "\n")
    return result


def _find(paths: Sequence[str | Path]) -> FoundImages:
    try:
        found = find_images(paths)
    except FileNotFoundError as error:
        raise PredictionError(str(error)) from error
    if not found.images:
        where = ", ".join(map(str, paths)) or "nothing"
        raise PredictionError(f"no image with one of the suffixes {', '.join(sorted(image_suffixes()))} in {where}")
    return found


def _name_pictures(files: Sequence[Path], out_dir: Path) -> list[Path]:
    """Return the path of the picture of each image.

    Raises:
        PredictionError: If it is the path of one of the images.
    """
    taken: set[Path] = set()
    pictures = []
    for file in files:
        picture, number = out_dir / f"{file.stem}.png", 1
        while picture in taken:
            number += 1
            picture = out_dir / f"{file.stem}_{number}.png"
        taken.add(picture)
        pictures.append(picture)
    overwritten = {picture.resolve() for picture in pictures} & {file.resolve() for file in files}
    if overwritten:
        raise PredictionError(f"{min(overwritten)} would be replaced by a picture: choose another folder to write to")
    return pictures


def _draw(
    image: UInt8[Tensor, "3 height width"], found: Detections, keep: Bool[Tensor, " n"], names: Sequence[str]
) -> Image.Image:
    return draw_boxes(
        image,
        found["boxes"][keep],
        found["labels"][keep],
        names,
        scores=found["scores"][keep],
        masks=found["masks"][keep, 0] if "masks" in found else None,
    )


def _to_json(file: Path, size: tuple[int, int], found: Detections, label_map: LabelMap) -> ImageDetections:
    labels = found["labels"].tolist()
    listed: ImageDetections = {
        "file": str(file),
        "width": size[1],
        "height": size[0],
        "boxes": [[round(side, 2) for side in box] for box in found["boxes"].tolist()],
        "scores": [round(score, 5) for score in found["scores"].tolist()],
        "labels": labels,
        "category_ids": [label_map.category_ids[label] for label in labels],
        "names": [label_map.names[label] for label in labels],
    }
    if "masks" in found:
        listed["masks"] = encode_masks(found["masks"])
    return listed
