"""Reading experiments from files, and completing them with what their dataset decides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deformdetr._files import FileError, read_mapping
from deformdetr.config import preset, preset_names
from deformdetr.data import DataConfig, LabelMap
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._settings import describe, differences, merge


def read_experiment(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from a YAML or JSON file, put overrides over it, and validate the result.

    Args:
        path: The file, by its suffix `.yaml`, `.yml` or `.json`.
        overrides: Nested mappings like the file's; they take precedence.

    Raises:
        ConfigError: If the file cannot be read, or the settings are not valid; the message names every wrong one.
    """
    try:
        settings = read_mapping(path)
    except (FileError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    return validate_experiment(merge(settings, overrides or {}), source=str(path))


def validate_experiment(settings: Mapping[str, Any], *, source: str) -> Experiment:
    """Validate settings that came from `source`.

    Raises:
        ConfigError: With one line per wrong setting.
    """
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, Experiment)}") from error


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
