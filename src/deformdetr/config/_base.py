"""The base class of configs, and their files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from deformdetr._files import read_mapping, write_mapping

_LARGEST = (2 - 2**-23) * 2.0**127

Source = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""Type of settings that are a path, a URL or a name. Paths are kept as text."""


class Config(BaseModel):
    """Base class of configs: immutable. An unknown field is an error, as is a number that is no finite float32."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits_float32(cls, value: object) -> object:
        """Check numbers alone and in collections: tensors of float32 have larger ones as infinite, or raise."""
        given = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else (value,)
        for number in given:
            if isinstance(number, float) and abs(number) > _LARGEST:
                raise ValueError(f"the magnitude of numbers must be at most {_LARGEST:.2g}, the largest of float32")
        return value

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated as a whole.

        A nested config is given as a config or as a mapping, and replaced completely.

        Examples:
            >>> from deformdetr.config import DETRConfig
            >>> DETRConfig().replace(num_classes=3).num_classes
            3

        Raises:
            pydantic.ValidationError: If the changed config is not valid.
        """
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(fields | changes)


class DefaultedConfig(Config):
    """Base class of configs whose fields all have defaults. Type checkers check the fields given to `replace`."""

    if TYPE_CHECKING:
        # The signature of the constructor: `replace(num_clases=3)` is an error of types too. Python's own types cannot
        # express the signature without its required fields, so that this is wrong for other configs.
        @property
        def replace(self) -> type[Self]: ...


# Bounds far above all published models. A larger number is a slip, and would end in hours without a step or in a
# process that the system kills for its memory.
Count = Annotated[int, Field(ge=1, le=100_000)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Points = Annotated[int, Field(ge=1, le=1_024)]
Layers = Annotated[int, Field(ge=1, le=256)]


def default_kind(kind: str) -> BeforeValidator:
    """Set the default `kind` of settings that do not name one."""

    def fill(settings: Any) -> Any:
        return {"kind": kind, **settings} if isinstance(settings, Mapping) else settings

    return BeforeValidator(fill)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def save_config(config: Config, path: str | Path) -> None:
    """Write a config to a YAML or JSON file, by its suffix; the file is replaced atomically.

    Examples:
        >>> import tempfile
        >>> from deformdetr.config import DETRConfig
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_config(DETRConfig(num_classes=3), f"{folder}/model.json")
        ...     load_config(f"{folder}/model.json", DETRConfig).num_classes
        3

    Raises:
        ValueError: If the suffix is none of `.yaml`, `.yml` and `.json`.
        ImportError: If it is YAML and pyyaml is not installed.
        OSError: If the file cannot be written; an existing one stays as it was.
    """
    write_mapping(Path(path), config.model_dump(mode="json"))


def load_config(path: str | Path, kind: type[AnyConfig]) -> AnyConfig:
    """Read a config from a YAML or JSON file, by its suffix.

    Args:
        path: The file. Missing fields have their defaults; an empty YAML file gives all defaults.
        kind: Class of the config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is none of `.yaml`, `.yml` and `.json`, the file cannot be parsed, is not a mapping or
            has a key twice, or the config is not valid; the message names every wrong field.
        ImportError: If it is YAML and pyyaml is not installed.

    Examples:
        >>> import tempfile
        >>> from deformdetr.config import DeformableDETRConfig, save_config
        >>> with tempfile.NamedTemporaryFile(suffix=".json") as file:
        ...     save_config(DeformableDETRConfig(num_classes=3), file.name)
        ...     load_config(file.name, DeformableDETRConfig).num_classes
        3
    """
    fields = read_mapping(Path(path))
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error
