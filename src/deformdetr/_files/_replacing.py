"""Files that are either the old ones or the new ones, whatever happens while they are written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deformdetr._files._paths import reason_of

_UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; what is there in the end is flushed to disk and replaces `path`.

    After an exception `path` is as before, and nothing else is left. A process that is killed leaves a hidden file,
    which `remove_unfinished` removes. A symbolic link stays, and its target is replaced.

    Raises:
        OSError: If the file cannot be written; the message names `path`.
    """
    target = Path(os.path.realpath(path))
    # A random name: two processes may write the same file, and a name made from a long one might be too long.
    unfinished = target.with_name(f".{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        # As root, a rename would replace even a device.
        if target.exists() and not target.is_file():
            raise FileExistsError("it is a folder, a device or a pipe")
        unfinished.touch(exist_ok=False)
        yield unfinished
        _flush(unfinished)
        unfinished.replace(target)
        # The rename itself lies in the folder, which not every file system can flush.
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


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder; no other writer may be at work there."""
    for unfinished in folder.glob(f".*{_UNFINISHED}"):
        # Another process may have been faster.
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `replacing` does.

    Raises:
        OSError: If the file cannot be written.
    """
    # What UTF-8 cannot hold, such as file names of another encoding, is escaped as JSON does.
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
    """Return the error of the system that an exception is about: `torch.save` hides it behind one of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _named(error: OSError, path: Path) -> OSError:
    reason = f"cannot be written: {reason_of(error)}"
    return type(error)(f"{path} {reason}") if error.errno is None else OSError(error.errno, reason, str(path))
