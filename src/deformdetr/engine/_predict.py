"""Detection in image and video files."""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from torch import Tensor

from deformdetr._files import check_folder, fitting_name, write_text
from deformdetr.data import DatasetError, DecodeConfig, LabelMap, load_image
from deformdetr.engine._errors import PredictionError
from deformdetr.engine._image_files import find_files, is_video
from deformdetr.engine._predictor import Predictor, batched, check_threshold, checked_batch_size, load
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._result import DetectionResult
from deformdetr.engine._video import require_av, video_frames, writing_video
from deformdetr.evaluation import RunLengths, encode_masks
from deformdetr.models import PanopticPostProcess
from deformdetr.visualize import check_font, save_image

_NAMED = 5


class ImageDetections(TypedDict):
    """Detections in one file, in descending order of scores.

    Boxes are (left, top, right, bottom) in pixels, clipped to the image. Masks of a model with a mask head have the
    size of the image.
    """

    file: str
    frame: NotRequired[int]
    """Index of the frame of a video, from 0."""
    width: int
    height: int
    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    category_ids: list[int]
    names: list[str]
    masks: NotRequired[list[RunLengths]]


class PredictResult(NamedTuple):
    """Detections of all images, the reasons for skipped files by path, and the threshold that the run suggests."""

    images: list[ImageDetections]
    skipped: dict[str, str]
    best_threshold: float | None = None
    """Threshold with the highest F1 in the run's evaluation, if it is known."""

    def remarks(self, threshold: float) -> list[str]:
        """Return lines about images without a detection above the threshold, and about a better threshold.

        Examples:
            >>> from deformdetr.engine import PredictResult
            >>> image = {"file": "a.png", "scores": [0.3], "names": ["cat"]}
            >>> PredictResult([image], {}, best_threshold=0.25).remarks(0.5)
            ['no detection scores 0.5 or more in the image; the best score is 0.300 (cat in a.png)', "in the run's \
evaluation, a threshold of 0.250 gave the highest F1: --threshold 0.250"]
        """
        empty = [each for each in self.images if not each["scores"] or each["scores"][0] < threshold]
        lines = []
        if empty:
            where = f"{len(empty)} of {len(self.images)} images" if len(self.images) > 1 else "the image"
            scored = [each for each in empty if each["scores"]]
            best = max(scored, key=lambda each: each["scores"][0], default=None)
            about = "" if best is None else f" is {best['scores'][0]:.3f} ({best['names'][0]} in {best['file']})"
            lines.append(
                f"no detection scores {threshold:g} or more in {where}" + (about and f"; the best score{about}")
            )
        if self.best_threshold is not None and abs(self.best_threshold - threshold) >= 0.0005:
            lines.append(
                f"in the run's evaluation, a threshold of {self.best_threshold:.3f} gave the highest F1: "
                f"--threshold {self.best_threshold:.3f}"
            )
        return lines


def predict(
    run: str | Path | Predictor,
    images: str | Path | Sequence[str | Path],
    out_dir: str | Path,
    *,
    threshold: float = 0.5,
    batch_size: int | None = None,
    font: str | Path | None = None,
) -> PredictResult:
    """Detect objects in image and video files, draw them, and write `predictions.json`.

    The JSON file has all detections that post-processing keeps. Pictures show those with a score of at least
    `threshold`. They are PNG files, or MP4 files of videos, named after their images, with a number if names collide. A
    file that cannot be read is skipped, and the result and the JSON file have the reason. Image files become pixels as
    in training: the run's `data.decode` says whether photographs are turned by their EXIF orientation.

    If the model predicts masks and its labels include stuff, the folder `panoptic` gets pictures of the panoptic
    segmentations of image files under the same names, of segments whose scores exceed `threshold`.

    Args:
        run: A predictor, or what `load` takes.
        images: Files, folders whose images and videos are used, and patterns such as `photos/**/*.jpg`, or one of
            them. Folders are searched recursively. Videos need PyAV.
        out_dir: Folder to write to. It is created, and pictures of an earlier call are replaced.
        threshold: Lowest score to draw.
        batch_size: As in a call of `Predictor`.
        font: As in `deformdetr.visualize.draw_boxes`.

    Raises:
        RunError: If the run does not exist.
        PredictionError: If a path does not exist, there are no images, or a picture would replace one of the images.
            Nothing is written then.
        NotADirectoryError: If `out_dir` is a file.
        ValueError: If `threshold` is not in [0, 1], or `batch_size` is not positive. Nothing is written then.
        OSError: If `font` cannot be read as a font. Nothing is written then.
        ModuleNotFoundError: If there is a video, and PyAV is not installed.

    Examples:
        >>> from deformdetr.engine import predict
        >>> result = predict("runs/detector", ["photo.jpg"], "predictions")  # doctest: +SKIP
        >>> result.images[0]["names"], result.images[0]["scores"]  # doctest: +SKIP
    """
    check_threshold(threshold)
    out_dir = Path(out_dir)
    check_folder(out_dir)
    if font is not None:
        check_font(font)
    given = [images] if isinstance(images, str | Path) else images
    files, others = find_files([Path(image) for image in given], leave_out=out_dir)
    pictures = _name_pictures(files, out_dir)
    if any(map(is_video, files)):
        require_av()
    predictor = run if isinstance(run, Predictor) else load(run)
    if predictor.panoptic is not None:
        # Pixels are assigned to what is drawn as boxes.
        predictor = _with_panoptic(predictor, replace(predictor.panoptic, threshold=threshold))
    size = checked_batch_size(batch_size, predictor.device)
    result = PredictResult([], {}, predictor.best_threshold)
    numbers = {str(file): number for number, file in enumerate(files, start=1)}
    out_dir.mkdir(parents=True, exist_ok=True)
    with ProgressDisplay("predicting", len(files)) as display:
        if others:
            named = ", ".join(map(str, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
            display.say(f"not images by their names: {len(others)} files ({named})")
        drawing = _Drawing(predictor, threshold, font, size)
        for are_videos, group in groupby(zip(files, pictures, strict=True), key=lambda pair: is_video(pair[0])):
            draw = drawing.videos if are_videos else drawing.images
            for each in draw(group, result.skipped):
                result.images.append(each)
                drawn = sum(score >= threshold for score in each["scores"])
                display.update(numbers[each["file"]], status=f"{drawn} in {Path(each['file']).name}")
        for file, reason in result.skipped.items():
            display.say(f"skipped {file}: {reason}" if file not in reason else f"skipped: {reason}")
    content = {
        "run": str(run) if isinstance(run, str | Path) else None,
        "threshold": threshold,
        "images": result.images,
        "skipped": result.skipped,
        "not_images": [str(file) for file in others],
    }
    write_text(out_dir / "predictions.json", json.dumps(content, indent=1) + "\n")
    return result


def _with_panoptic(predictor: Predictor, panoptic: PanopticPostProcess | None) -> Predictor:
    changed = copy.copy(predictor)
    changed.panoptic = panoptic
    return changed


class _Drawing(NamedTuple):
    """Detection in files, drawn into pictures."""

    predictor: Predictor
    threshold: float
    font: str | Path | None
    batch_size: int

    def images(self, files: Iterable[tuple[Path, Path]], skipped: dict[str, str]) -> Iterator[ImageDetections]:
        """Write the picture of each image file, and yield its detections."""
        for batch in batched(_readable(files, skipped, self.predictor.decode), self.batch_size):
            images = [image for _, _, image in batch]
            results = self.predictor(images, threshold=0.0, batch_size=self.batch_size)
            for (file, picture, _), found in zip(batch, results, strict=True):
                save_image(found.above(self.threshold).draw(font=self.font), picture)
                if found.segmentation is not None:
                    _panoptic_picture(picture).parent.mkdir(exist_ok=True)
                    save_image(found.draw_panoptic(font=self.font), _panoptic_picture(picture))
                yield _to_json(file, found, self.predictor.label_map)

    def videos(self, files: Iterable[tuple[Path, Path]], skipped: dict[str, str]) -> Iterator[ImageDetections]:
        """Write the drawn video of each video file, and yield the detections of its frames."""
        for file, picture in files:
            try:
                yield from self._video(file, picture)
            except DatasetError as error:
                skipped[str(file)] = str(error)

    def _video(self, file: Path, picture: Path) -> list[ImageDetections]:
        listed = []
        # Frames are drawn with boxes and masks alone.
        predictor = _with_panoptic(self.predictor, None)
        with writing_video(picture, like=file) as write:
            results = predictor.stream(video_frames(file), threshold=0.0, batch_size=self.batch_size)
            for number, found in enumerate(results):
                write(found.above(self.threshold).draw(font=self.font))
                listed.append(_to_json(file, found, self.predictor.label_map, frame=number))
        return listed


def _readable(
    files: Iterable[tuple[Path, Path]], skipped: dict[str, str], decode: DecodeConfig
) -> Iterator[tuple[Path, Path, Tensor]]:
    """Yield the image of every file that can be read, and add the others to `skipped`."""
    for file, picture in files:
        try:
            image = load_image(file, decode)
        except DatasetError as error:
            skipped[str(file)] = str(error)
        else:
            yield file, picture, image


def _panoptic_picture(picture: Path) -> Path:
    return picture.parent / "panoptic" / picture.name


def _name_pictures(files: Sequence[Path], out_dir: Path) -> list[Path]:
    """Return the path of the picture of each image, or of the drawn video.

    Raises:
        PredictionError: If it is the path of one of the images.
    """
    taken: set[Path] = set()
    pictures = []
    for file in files:
        suffix = ".mp4" if is_video(file) else ".png"
        picture, number = out_dir / fitting_name(file.stem, suffix), 1
        while picture in taken:
            number += 1
            picture = out_dir / fitting_name(file.stem, f"_{number}{suffix}")
        taken.add(picture)
        pictures.append(picture)
    written = [*pictures, *map(_panoptic_picture, pictures)]
    overwritten = {picture.resolve() for picture in written} & {file.resolve() for file in files}
    if overwritten:
        raise PredictionError(f"{min(overwritten)} would be replaced by a picture: choose another folder to write to")
    return pictures


def _to_json(file: Path, found: DetectionResult, label_map: LabelMap, *, frame: int | None = None) -> ImageDetections:
    labels = found.labels.tolist()
    listed: ImageDetections = {
        "file": str(file),
        "width": found.image.shape[2],
        "height": found.image.shape[1],
        "boxes": [[round(side, 2) for side in box] for box in found.boxes.tolist()],
        "scores": [round(score, 5) for score in found.scores.tolist()],
        "labels": labels,
        "category_ids": [label_map.category_ids[label] for label in labels],
        "names": found.names,
    }
    if frame is not None:
        listed["frame"] = frame
    if found.masks is not None:
        listed["masks"] = encode_masks(found.masks[:, None])
    return listed
