"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices


def _expand_home(path: Path) -> Path:
    """Return the path with its first part expanded if that is `~`."""
    try:
        return path.expanduser() if path.parts[:1] == ("~",) else path
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


# Shells leave `~` in `--output=~/runs/a` and in quoted patterns as it is.
UserPath = Annotated[Path, AfterValidator(_expand_home)]

RUN = (
    "Run directory, one of its checkpoints, or a folder of save_pretrained: a path, a URL, or user/name on the Hugging "
    "Face Hub."
)
# Names of the option for the place to write to.
OUTPUT = AliasChoices("output", "out")
