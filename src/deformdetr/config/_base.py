"""What all descriptions share, and their files."""

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


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
    """
    path = Path(path)
    fields = config.model_dump(mode="json")
    if _is_yaml(path):
        text: str = _yaml(path).safe_dump(fields, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_config(path: str | Path, kind: type[AnyConfig]) -> AnyConfig:
    """Read a description from a YAML or JSON file, by its suffix.

    Args:
        path: Fields that it leaves out have their defaults.
        kind: Which description it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is none of `.yaml`, `.yml` and `.json`, the file cannot be parsed or holds no mapping,
            or the description is not valid; every field that is wrong is named.
        ImportError: If it is YAML and pyyaml is not installed.
    """
    path = Path(path)
    fields = _parse_yaml(path) if _is_yaml(path) else _parse_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a mapping of fields, got a {type(fields).__name__}: {fields!r:.80}")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse_yaml(path: Path) -> Any:
    yaml = _yaml(path)
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    # A file that is empty, or of comments alone: everything has its default.
    return {} if fields is None else fields


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _is_yaml(path: Path) -> bool:
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{path} must end in .yaml, .yml or .json")
    return path.suffix.lower() != ".json"


def _yaml(path: Path) -> ModuleType:
    # Imported here, because descriptions in Python and JSON do without.
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path} needs pyyaml: pip install pyyaml, or use a .json file") from error
    return yaml
