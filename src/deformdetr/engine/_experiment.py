"""Reading experiments from files, and completing them with what their dataset decides."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deformdetr.config import preset, preset_names
from deformdetr.data import DataConfig, LabelMap
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._extras import require_train_extra
from deformdetr.engine._overrides import differences, merge
from deformdetr.engine._settings import describe


def read_experiment(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from a YAML or JSON file, put overrides over it, and validate the result.

    Args:
        path: The file; a name that ends in `.json` is JSON.
        overrides: Nested mappings like the file's; they take precedence.

    Raises:
        ConfigError: If the file cannot be read, or the settings are not valid; the message names every wrong one.
    """
    return validate_experiment(merge(read_mapping(path), overrides or {}), source=str(path))


def validate_experiment(settings: Mapping[str, Any], *, source: str) -> Experiment:
    """Validate settings that came from `source`.

    Raises:
        ConfigError: With one line per wrong setting.
    """
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, Experiment)}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping.

    Raises:
        ConfigError: If it cannot be read, or holds something else.
    """
    require_train_extra()
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {content!r:.60}, but settings by name are needed (`train: ...`)")
    return content


def resolve(experiment: Experiment, label_map: LabelMap) -> Experiment:
    """Write the dataset's labels, and their number where the model leaves it open, into the experiment.

    Raises:
        ConfigError: If the model has fewer classes than there are labels.
    """
    model = experiment.model
    if "num_classes" not in model.model_fields_set:
        model = model.replace(num_classes=label_map.num_classes)
    if model.num_classes < label_map.num_classes:
        names = ", ".join(label_map.names[:10]) + (", ..." if label_map.num_classes > 10 else "")
        raise ConfigError(
            f"model.num_classes is {model.num_classes}, but the dataset has {label_map.num_classes} labels ({names}); "
            "leave it out to follow the dataset"
        )
    data = experiment.data
    if isinstance(data, DataConfig):
        data = data.replace(label_map=label_map)
    return experiment.replace(model=model, data=data)


def changes_that_matter(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """Give the settings that differ so that one run cannot be the continuation of the other, by dotted name.

    How often a run evaluates, saves and reports, and how many processes load its images, changes nothing else. The
    number of epochs may change as well, unless the learning rate depends on it.
    """
    harmless = {"train.eval_every", "train.save_every", "train.log_every", "train.init_checkpoint", "data.num_workers"}
    if old.train.schedule.kind == "step":
        harmless.add("train.epochs")
    changed = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    return {name: values for name, values in changed.items() if name not in harmless}


def experiment_schema() -> dict[str, Any]:
    """Give the JSON schema of experiment files, with which editors complete and check them."""
    schema = Experiment.model_json_schema()
    for model in ("DeformableDETRConfig", "DETRConfig"):
        schema["$defs"][model]["properties"]["preset"] = {
            "description": "The preset whose fields are the defaults.",
            "enum": [name for name in preset_names() if type(preset(name)).__name__ == model],
            "type": "string",
        }
    return schema
