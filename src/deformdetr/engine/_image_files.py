"""Finding image and video files."""

from collections.abc import Iterable
from pathlib import Path

from deformdetr.data import FoundImages, find_images, image_suffixes
from deformdetr.engine._errors import PredictionError

_VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


def is_video(path: Path) -> bool:
    """Return whether the suffix of a file is that of a video."""
    return path.suffix.lower() in _VIDEO_SUFFIXES


def find_files(paths: Iterable[Path], *, leave_out: Path | None = None) -> FoundImages:
    """Return the image and video files among files, in folders and of patterns, without repetitions, and other files.

    Args:
        paths: Files; folders, which are searched recursively as `find_images` does; and patterns such as `**/*.jpg`.
        leave_out: A folder of pictures written earlier, which is left out unless a path names it.

    Raises:
        PredictionError: If a path does not exist, a pattern fits no file, or there are no images.
    """
    given = list(paths)
    found = FoundImages([], [])
    absent: list[str] = []
    for path in given:
        of_path = find_images([path] if path.exists() else _matching(path))
        hidden = {file for file in of_path.others if any(part.startswith(".") for part in file.relative_to(path).parts)}
        videos = {file for file in of_path.others if is_video(file)} - hidden
        images = sorted({*of_path.images, *videos}) if path.is_dir() else of_path.images
        absent += [] if images or path.is_dir() else [str(path)]
        found.images.extend(file for file in images if not _is_own(file, path, leave_out))
        found.others.extend(
            file for file in of_path.others if file not in videos and not _is_own(file, path, leave_out)
        )
    if absent:
        raise PredictionError(f"no such file or folder: {', '.join(absent)}")
    if not found.images:
        where = ", ".join(map(str, given)) or "nothing"
        raise PredictionError(f"no image with one of the suffixes {', '.join(sorted(image_suffixes()))} in {where}")
    return FoundImages(*(list(dict.fromkeys(each)) for each in found))


def _matching(pattern: Path) -> list[Path]:
    start = Path(pattern.anchor)
    return sorted(file for file in start.glob(str(pattern.relative_to(start))) if file.is_file())


def _is_own(file: Path, path: Path, leave_out: Path | None) -> bool:
    if leave_out is None:
        return False
    file, path, leave_out = file.absolute(), path.absolute(), leave_out.absolute()
    return file.is_relative_to(leave_out) and not path.is_relative_to(leave_out)
