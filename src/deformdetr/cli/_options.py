"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BeforeValidator


def _expand_home(path: Path) -> Path:
    """Return the path with its first part expanded if that is `~`. Others, such as `~name`, may be names of files."""
    try:
        return path.expanduser() if path.parts[:1] == ("~",) else path
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse_nothing(path: str | Path) -> str | Path:
    """Return the path; an empty one would be the current directory."""
    if not str(path):
        raise ValueError("the path is empty; is a variable not set?")
    return path


# Shells leave `~` in `--output=~/runs/a` and in quoted patterns as it is.
UserPath = Annotated[Path, BeforeValidator(_refuse_nothing), AfterValidator(_expand_home)]
# A path, a URL or a name on the Hub.
UserSource = Annotated[str, BeforeValidator(_refuse_nothing)]

RUN = (
    "Run directory, one of its checkpoints, or a folder of save_pretrained: a path, a URL, or user/name on the Hugging "
    "Face Hub."
)
# Names of the option for the place to write to.
OUTPUT = AliasChoices("output", "out")
