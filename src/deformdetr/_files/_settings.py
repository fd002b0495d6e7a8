"""Reading and writing settings as YAML or JSON, and reading any JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from deformdetr._files._errors import FileError
from deformdetr._files._paths import check_readable, reason_of
from deformdetr._files._replacing import write_text

_SUFFIXES = (".yaml", ".yml", ".json")
# A few lines of YAML can expand to any number of values through aliases.
_MAX_VALUES = 200_000
_MAX_ALIASES = 1_000
# Settings have five levels. Deeper ones would exceed Python's stack where they are compared or validated.
_MAX_DEPTH = 50


def read_mapping(path: Path, *, number_keys: bool = False) -> dict[Any, Any]:
    """Return the mapping in a YAML or JSON file. The suffix gives the format.

    An empty YAML file, or one with only comments, is an empty mapping. Repeated keys are an error.

    Args:
        path: The file.
        number_keys: Whether keys in YAML may be integers too.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If the suffix is not `.yaml`, `.yml` or `.json`, the file cannot be read, or its content is not a
            mapping.
        ImportError: If it is YAML and pyyaml is not installed.
    """
    content = _parse_yaml(path, _yaml(path), number_keys=number_keys) if _is_yaml(path) else read_json(path)
    _check_depth(path, content)
    if not isinstance(content, dict):
        raise FileError(f"{path} must hold a mapping of fields, got a {type(content).__name__}: {content!r:.80}")
    return content


def write_mapping(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a mapping to a YAML or JSON file, atomically as `replacing` does. The suffix gives the format.

    Raises:
        FileError: If the suffix is not `.yaml`, `.yml` or `.json`.
        ImportError: If it is YAML and pyyaml is not installed.
        OSError: If the file cannot be written.
    """
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    if _is_yaml(path):
        # pyyaml would write this line break (the ellipsis of Windows-1252, read as Latin-1) as a space.
        text = _yaml(path).safe_dump(dict(fields), sort_keys=False, allow_unicode="\x85" not in text)
    write_text(path, text)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of any suffix. Repeated keys are an error.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If it cannot be read.
    """
    text = _read_text(path)
    if not text.strip():
        raise FileError(f"{path} is not valid JSON: the file is empty")
    try:
        return parse_json(text)
    except ValueError as error:
        raise FileError(f"{path} is not valid JSON: {error}") from error


def parse_json(text: str) -> Any:
    """Return the content of a JSON text. Repeated keys are an error.

    Raises:
        ValueError: If the text is not valid.
    """
    try:
        return json.loads(text, object_pairs_hook=_refuse_repeated)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in one object")
    return content


def _check_depth(path: Path, content: Any) -> None:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(_MAX_DEPTH):
        containers = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in containers for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise FileError(f"{path} is nested too deeply: more than {_MAX_DEPTH} levels")


def _parse_yaml(path: Path, yaml: ModuleType, *, number_keys: bool) -> Any:
    text = _read_text(path)
    try:
        _check_events(text, yaml)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        _count_values(node, {}, yaml, ("str", "int") if number_keys else ("str",))
        content = loader.construct_document(node)
        return {} if content is None else content
    except RecursionError as error:
        raise FileError(f"{path} is not valid YAML: it is nested too deeply") from error
    # For invalid numbers and dates, the parser passes on the exceptions of Python's own functions.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise FileError(f"{path} is not valid YAML: {_yaml_reason(error)}") from error


def _check_events(text: str, yaml: ModuleType) -> None:
    """Check depth and number of aliases while the text is read, before anything is built from it.

    Raises:
        yaml.YAMLError: If there are too many, or the text is not YAML.
    """
    depth = aliases = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > _MAX_DEPTH:
            _refuse(yaml, f"it is nested too deeply: more than {_MAX_DEPTH} levels", event)
        if aliases > _MAX_ALIASES:
            _refuse(yaml, f"it has more than {_MAX_ALIASES:,} aliases", event)


def _count_values(node: Any, counts: dict[Any, int | None], yaml: ModuleType, keys: tuple[str, ...]) -> int:
    """Return the number of values in a node with its aliases expanded, without expanding them.

    Args:
        node: Node of the parsed document.
        counts: Counts of nodes seen before. `None` marks a node that is being counted.
        yaml: The package.
        keys: Types of keys.

    Raises:
        yaml.YAMLError: If there are too many values, a node contains itself, or a mapping has invalid keys.
    """
    if node in counts:
        known = counts[node]
        return _refuse(yaml, "it contains itself", node) if known is None else known
    counts[node] = None
    children = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, yaml, keys)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count_values(each, counts, yaml, keys) for each in children)
    if total > _MAX_VALUES:
        _refuse(yaml, f"with its aliases expanded, it has more than {_MAX_VALUES:,} values", node)
    counts[node] = total
    return total


def _check_keys(node: Any, yaml: ModuleType, keys: tuple[str, ...]) -> None:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag.removeprefix("tag:yaml.org,2002:") not in keys:
            _refuse(yaml, "a key must be text; quote it", key)
        if key.value in seen:
            _refuse(yaml, f"the key {key.value!r} occurs twice in one mapping", key)
        seen.add(key.value)


def _refuse(yaml: ModuleType, problem: str, node: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _yaml_reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f", line {mark.line + 1} column {mark.column + 1}"
    return (getattr(error, "problem", None) or " ".join(str(error).split())) + where


def _read_text(path: Path) -> str:
    check_readable(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def _is_yaml(path: Path) -> bool:
    if path.suffix.lower() not in _SUFFIXES:
        raise FileError(f"{path} must end in .yaml, .yml or .json")
    return path.suffix.lower() != ".json"


def _yaml(path: Path) -> ModuleType:
    # Imported here, because settings in Python and JSON do not need it.
    try:
        import yaml
    except ImportError as error:
        message = f"{path} needs pyyaml: pip install pyyaml, or use a .json file"
        raise ModuleNotFoundError(message, name="yaml") from error
    return yaml
