"""Expanding paths, and checking them before files are read or written."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from deformdetr._files._errors import FileError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expand_path(path: str | Path) -> Path:
    """Expand `~`, `$VARIABLE` and `${VARIABLE}`. A relative path stays relative to the current directory.

    Raises:
        FileError: If a variable is unset or empty, or if the user of `~user` is unknown.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name, "")
        if not found:
            raise FileError(f"{path}: the environment variable {name!r} is not set or empty")
        return found

    expanded = _VARIABLE.sub(value, str(path))
    try:
        return Path(expanded).expanduser()
    except RuntimeError as error:
        raise FileError(f"{path}: {error}") from error


def check_readable(path: Path) -> None:
    """Check that a path is a regular file. Opening a pipe would wait for a writer, and a device may have no end.

    Raises:
        FileNotFoundError: If the path does not exist.
        FileError: If it is not a regular file, or cannot be inspected.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no file {path}{where_from(path)}") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {reason_of(error)}") from error
    if stat.S_ISDIR(mode):
        raise FileError(f"{path} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is not a regular file")


def where_from(path: Path) -> str:
    """Return the end of a message about a missing path: where it starts, if it is relative."""
    return "" if path.is_absolute() else f"; a relative path starts at the current directory, {Path.cwd()}"


def check_folder(path: Path) -> None:
    """Check that files can be written to a folder, or that it can be made, before its content is computed.

    Raises:
        NotADirectoryError: If it is a file.
        PermissionError: If it, or the folder to make it in, may not be written to.
    """
    existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file, and a folder is needed")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {existing} may not be written to")


def check_writable(path: Path, *, suffixes: Sequence[str], overwrite: bool) -> None:
    """Check that a file can be written, before its content is computed.

    Raises:
        ValueError: If the suffix is not one of `suffixes`.
        FileExistsError: If the path is a folder, or a file and `overwrite` is False.
        FileNotFoundError: If the folder of the file does not exist.
        PermissionError: If it may not be written to.
    """
    if path.suffix not in suffixes:
        choice = suffixes[0] if len(suffixes) == 1 else f"one of {', '.join(suffixes)}"
        raise ValueError(f"{path} must end in {choice}")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; overwrite=True, or --force, replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    check_folder(path.parent)


def reason_of(error: Exception) -> str:
    """Return the message of an error, without the name of the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def fitting_name(stem: str, ending: str) -> str:
    """Return a file name that file systems allow, at most 255 bytes: the stem, shortened if needed, and its ending."""
    while len(os.fsencode(stem + ending)) > 255:
        stem = stem[:-1]
    return stem + ending
