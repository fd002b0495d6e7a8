"""Paths as people write them in configs: with `~`, `$VARIABLE` and `${VARIABLE}`."""

import os
import re
from pathlib import Path

from deformdetr.data._errors import DatasetError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expand_path(path: Path) -> Path:
    """Replace `~`, `$VARIABLE` and `${VARIABLE}`; a relative path stays relative to the current directory.

    Raises:
        DatasetError: If a variable is unset or empty, or if the user of `~user` is unknown.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name, "")
        if not found:
            raise DatasetError(f"{path}: the environment variable {name!r} is not set (or is empty)")
        return found

    expanded = _VARIABLE.sub(value, str(path))
    try:
        return Path(expanded).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{path}: {error}") from error
