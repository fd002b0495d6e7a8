"""Finding image and video files."""

from collections.abc import Iterable
from functools import cache
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
    resolve = cache(Path.resolve)
    for path in given:
        folder = path if path.is_dir() else None
        own = None if leave_out is None or resolve(path).is_relative_to(resolve(leave_out)) else resolve(leave_out)
        if folder is not None:
            files = [file for each in find_images(folder) for file in each]
        elif path.exists():
            files = [path]
        else:
            files = _matching(path)
            absent += [] if files else [str(path)]
        for file in sorted(files):
            # A file that is given is an image, whatever its name.
            is_image = file == path or _is_named_as_image(file, folder)
            # Links to files stay as they are.
            if own is None or not (resolve(file.parent) / file.name).is_relative_to(own):
                (found.images if is_image else found.others).append(file)
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


def _is_named_as_image(file: Path, folder: Path | None) -> bool:
    """Return whether a file is an image or a video by its name. Hidden ones are not, as in `find_images`."""
    parts = (file.name,) if folder is None else file.relative_to(folder).parts
    is_hidden = any(part.startswith(".") for part in parts)
    return not is_hidden and (file.suffix.lower() in image_suffixes() or is_video(file))
