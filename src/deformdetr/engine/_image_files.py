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
        paths: Files, whatever their names; folders, which are searched recursively as `find_images` does; and patterns
            such as `**/*.jpg`.
        leave_out: A folder of pictures written earlier, which is left out unless a path names it.

    Raises:
        PredictionError: If a path does not exist, a pattern is not valid or fits no file, or there are no images.
    """
    given = list(paths)
    found = FoundImages([], [])
    absent: list[str] = []
    for path in given:
        if path.is_dir():
            files = [file for each in find_images(path) for file in each]
            of_path = _sorted_out(files, below=path)
        elif path.exists():
            of_path = FoundImages([path], [])
        else:
            files = _matching(path)
            of_path = _sorted_out(files)
            absent += [] if files else [str(path)]
        for own, listed in zip(of_path, found, strict=True):
            listed.extend(file for file in own if not _is_own(file, path, leave_out))
    if absent:
        raise PredictionError(f"no such file or folder: {', '.join(absent)}")
    if not found.images:
        where = ", ".join(map(str, given)) or "nothing"
        raise PredictionError(f"no image with one of the suffixes {', '.join(sorted(image_suffixes()))} in {where}")
    return FoundImages(*(list(dict.fromkeys(each)) for each in found))


def _matching(pattern: Path) -> list[Path]:
    start = Path(pattern.anchor)
    try:
        return sorted(file for file in start.glob(str(pattern.relative_to(start))) if file.is_file())
    except ValueError as error:
        raise PredictionError(f"{pattern} is no valid pattern: {error}") from error


def _sorted_out(files: Iterable[Path], *, below: Path | None = None) -> FoundImages:
    """Return which files are images or videos by their names, sorted. Hidden ones are not, as in `find_images`."""
    found = FoundImages([], [])
    for file in sorted(files):
        parts = (file.name,) if below is None else file.relative_to(below).parts
        is_hidden = any(part.startswith(".") for part in parts)
        is_image = not is_hidden and (file.suffix.lower() in image_suffixes() or is_video(file))
        (found.images if is_image else found.others).append(file)
    return found


def _is_own(file: Path, path: Path, leave_out: Path | None) -> bool:
    if leave_out is None:
        return False
    file, path, leave_out = file.absolute(), path.absolute(), leave_out.absolute()
    return file.is_relative_to(leave_out) and not path.is_relative_to(leave_out)
