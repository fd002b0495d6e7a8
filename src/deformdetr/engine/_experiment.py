"""Reading experiments from files, and completing them with the labels of their dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deformdetr._files import FileError, read_mapping
from deformdetr.config import DeformableDETRConfig, preset, preset_names
from deformdetr.data import LabelMap, ObjectLimits, ShapesConfig
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._inference import evaluated_model
from deformdetr.engine._settings import describe, differences, merge


def read_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment from a YAML or JSON file, and apply overrides to it.

    Args:
        path: File ending in `.yaml`, `.yml` or `.json`.
        overrides: Nested settings that take precedence over those of the file.

    Raises:
        ConfigError: If the file cannot be read, or settings are not valid. The message names each of them.

    Examples:
        >>> import tempfile
        >>> from deformdetr.config import save_config
        >>> from deformdetr.engine import demo_experiment, read_experiment
        >>> with tempfile.NamedTemporaryFile(suffix=".json") as file:
        ...     save_config(demo_experiment(), file.name)
        ...     experiment = read_experiment(file.name, {"train": {"epochs": 2}})
        >>> experiment.train.epochs
        2
    """
    try:
        settings = read_mapping(Path(path))
    except (FileError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    return validate_experiment(merge(settings, overrides or {}), source=str(path))


def validate_experiment(settings: Mapping[str, Any], *, source: str) -> Experiment:
    """Return the experiment with these settings. `source` names their origin in errors.

    Raises:
        ConfigError: If settings are not valid. The message has one line for each.
    """
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, Experiment)}") from error


def resolve(experiment: Experiment, label_map: LabelMap) -> Experiment:
    """Return the experiment with the dataset's label map and, unless it is given, the model's number of classes.

    Raises:
        ConfigError: If the model has fewer classes than there are labels.

    Examples:
        >>> from deformdetr.data import LabelMap
        >>> from deformdetr.engine import demo_experiment, resolve
        >>> label_map = LabelMap.contiguous({1: "circle", 2: "rectangle", 3: "triangle"})
        >>> resolve(demo_experiment(), label_map).model.num_classes
        3
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
    if not isinstance(data, ShapesConfig):
        data = data.replace(label_map=label_map)
    return experiment.replace(model=model, data=data)


def object_limits(experiment: Experiment) -> ObjectLimits:
    """Return how many objects per image a model and its evaluation can find, for warnings about its dataset.

    Examples:
        >>> from deformdetr import preset
        >>> from deformdetr.data import ShapesConfig
        >>> from deformdetr.engine import Experiment, object_limits
        >>> object_limits(Experiment(model=preset("detr_r50"), data=ShapesConfig())).num_queries
        100
    """
    kept = evaluated_model(experiment)
    return ObjectLimits(
        num_queries=kept.num_queries,
        max_detections=kept.top_k if isinstance(kept, DeformableDETRConfig) else None,
        max_per_category=experiment.train.max_detections,
    )


# Settings that may change when a run is resumed, with those below them. `check_past` checks the schedule.
_CHANGEABLE = (
    "data.cache",
    "data.cache_gb",
    "data.num_workers",
    "train.early_stopping",
    "train.epochs",
    "train.eval_every",
    "train.init_checkpoint",
    "train.log_every",
    "train.save_every",
    "train.save_every_steps",
    "train.schedule",
    "train.tracking",
)


def all_changes(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """Return the old and new values of settings that differ, by dotted name."""
    return differences(old.model_dump(mode="json"), new.model_dump(mode="json"))


def changes_that_matter(old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """Return those of `all_changes` that must not be made when a run is resumed.

    The intervals of evaluation, saving and logging, the number of workers, trackers, early stopping, the number of
    epochs and the schedule may change.
    """

    def may_change(name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in _CHANGEABLE)

    return {name: values for name, values in all_changes(old, new).items() if not may_change(name)}


def experiment_schema() -> dict[str, Any]:
    """Return the JSON schema of experiment files, for completion and checks in editors.

    Examples:
        >>> from deformdetr.engine import experiment_schema
        >>> sorted(experiment_schema()["properties"])
        ['data', 'model', 'train']
    """
    schema = Experiment.model_json_schema()
    for model in ("DeformableDETRConfig", "DETRConfig"):
        schema["$defs"][model]["properties"]["preset"] = {
            "description": "The preset whose fields are the defaults.",
            "enum": [name for name in preset_names() if type(preset(name)).__name__ == model],
            "type": "string",
        }
    return schema
