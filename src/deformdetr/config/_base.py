"""What all descriptions share, and their files."""

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from deformdetr._files import read_mapping, write_mapping


class Config(BaseModel):
    """A frozen description that knows all of its fields: an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def replace(self, **changes: Any) -> Self:
        """Give a copy with some fields changed, validated as a whole.

        Nested descriptions may be given as such or as mappings, which replace the whole of them.

        Raises:
            pydantic.ValidationError: If the changed description is not valid.
        """
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(fields | changes)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def save_config(config: Config, path: str | Path) -> None:
    """Write a description, as YAML or JSON by the file's suffix; the file is replaced in one step.

    Raises:
        ValueError: If the suffix is none of `.yaml`, `.yml` and `.json`.
        ImportError: If it is YAML and pyyaml is not installed.
        OSError: If the file cannot be written; an older one is left as it was.
    """
    write_mapping(Path(path), config.model_dump(mode="json"))


def load_config(path: str | Path, kind: type[AnyConfig]) -> AnyConfig:
    """Read a description from a YAML or JSON file, by its suffix.

    Args:
        path: Fields that it leaves out have their defaults; an empty YAML file leaves out all.
        kind: Which description it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is none of `.yaml`, `.yml` and `.json`, the file cannot be parsed or holds no mapping,
            a key stands twice, or the description is not valid; every field that is wrong is named.
        ImportError: If it is YAML and pyyaml is not installed.
    """
    fields = read_mapping(Path(path))
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error
