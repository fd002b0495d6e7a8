"""Atomic writing of files: after a failure, the old file is intact."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deformdetr._files._paths import reason_of

_UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. On exit, the file written there is flushed and replaces `path`.

    After an exception, `path` is unchanged and the temporary file is removed. A process that is killed leaves a hidden
    file, which `remove_unfinished` removes. If `path` is a symbolic link, its target is replaced.

    Raises:
        OSError: If the file cannot be written; the message names `path`.
    """
    target = Path(os.path.realpath(path))
    # The name is random, because two processes may write the same file, and a longer file name may not be allowed.
    unfinished = target.with_name(f".{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        # For root, a rename would replace even a device.
        if target.exists() and not target.is_file():
            raise FileExistsError("it is a folder, a device or a pipe")
        unfinished.touch(exist_ok=False)
        yield unfinished
        _flush(unfinished)
        unfinished.replace(target)
        # The rename is stored in the folder, which not every file system can flush.
        with suppress(OSError):
            _flush(target.parent)
    except (OSError, RuntimeError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise _named(cause, path) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def keep_as(path: Path, other: Path) -> None:
    """Link a file under a second name in its folder, atomically, which keeps the content when `path` is replaced.

    Raises:
        OSError: If the file cannot be read, or the other name cannot be given.
    """
    with replacing(other) as unfinished:
        unfinished.unlink()
        try:
            unfinished.hardlink_to(path.resolve())
        except OSError:
            # Not every file system has links.
            shutil.copyfile(path, unfinished)


def is_unfinished(path: Path) -> bool:
    """Return whether a path has the name of a temporary file of a writer."""
    return path.name.startswith(".") and path.name.endswith(_UNFINISHED)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed writers from a folder. No writer may be active there."""
    for unfinished in filter(is_unfinished, folder.iterdir()):
        # Another process may have removed it already.
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically as `replacing` does.

    Raises:
        OSError: If the file cannot be written.
    """
    # Characters that UTF-8 cannot encode, such as those of file names in other encodings, are escaped as in JSON.
    content = text.encode(errors="backslashreplace")
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error that caused an exception. `torch.save` wraps it in its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _named(error: OSError, path: Path) -> OSError:
    reason = f"cannot be written: {reason_of(error)}"
    return type(error)(f"{path} {reason}") if error.errno is None else OSError(error.errno, reason, str(path))
