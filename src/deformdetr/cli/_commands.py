"""The commands and their options."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, SkipValidation, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    CliSuppress,
    CliToggleFlag,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)

from deformdetr import __version__
from deformdetr.cli._convert import Convert
from deformdetr.cli._datasets import Coco, Shards, Split
from deformdetr.cli._export import Export
from deformdetr.cli._options import OUTPUT, RUN, UserPath, UserSource
from deformdetr.cli._summary import Summary
from deformdetr.cli._template import commented_yaml
from deformdetr.config import (
    PRESETS,
    DATConfig,
    DeformableDETRConfig,
    DETRConfig,
    ResNetConfig,
    TimmConfig,
    preset,
    with_backbone_weights,
)
from deformdetr.data import DataConfig, ShapesConfig, ShardsConfig, check
from deformdetr.engine import (
    Experiment,
    Processes,
    ProgressDisplay,
    RunDirectory,
    TrainConfig,
    demo_experiment,
    draw_augmented,
    evaluate_run,
    experiment_schema,
    models_in,
    object_limits,
    predict,
    read_experiment,
    run_demo,
    setting_names,
    suggest,
    train,
)
from deformdetr.visualize import check_picture, save_image


class _DeformableDETROptions(DeformableDETRConfig):
    preset: str | None = Field(default=None, description="The preset whose fields are the defaults.")


class _DETROptions(DETRConfig):
    preset: str | None = Field(default=None, description="The preset whose fields are the defaults.")


# Fields of these types become options that `--help` does not list. Their values are not validated before they override
# those of a config file.
_MODEL = CliSuppress[SkipValidation[_DeformableDETROptions | _DETROptions]]
_DATA = CliSuppress[SkipValidation[DataConfig | ShapesConfig | ShardsConfig]]
_TRAIN = CliSuppress[SkipValidation[TrainConfig]]


def _no_settings() -> Any:
    return {}


class Train(BaseModel):
    """Train the model that CONFIG describes.

    Options override settings of CONFIG: `--train.lr 1e-4 --model.num_queries 50`. To train on several GPUs or machines,
    use `accelerate launch -m deformdetr train ...` or torchrun.
    """

    config: CliPositionalArg[UserPath] = Field(
        description="YAML or JSON file; `deformdetr config` prints one to start from."
    )
    output: UserPath | None = Field(
        default=None, validation_alias=OUTPUT, description="Run directory; by default runs/ and the name of CONFIG."
    )
    resume: CliToggleFlag[bool] = Field(
        default=False, description="Continue the run in the directory, or start it if there is none."
    )
    model: _MODEL = Field(default_factory=_no_settings, description="Settings of the model.")
    data: _DATA = Field(default_factory=_no_settings, description="Settings of the dataset.")
    train: _TRAIN = Field(default_factory=_no_settings, description="Settings of the training.")

    def execute(self) -> int:
        """Run the command."""
        experiment = read_experiment(self.config, _overrides(self))
        output = Path("runs") / self.config.stem if self.output is None else self.output
        train(experiment, output, resume=self.resume)
        if Processes().is_main:
            run = RunDirectory(output)
            written = [file.name for file in (run.best, run.last, run.metrics, run.curves) if file.exists()]
            print(f"{output}: {', '.join(written)}; next: deformdetr eval {output}")
        return 0


class Eval(BaseModel):
    """Evaluate the best checkpoint of a run: print pycocotools' table and write metrics, detections and pictures.

    If the model predicts masks and some categories are stuff (`isthing: 0`), the panoptic quality is computed, too.
    Options override settings of the run's dataset: `--data.val_images DIR --data.val_annotations FILE`.
    """

    run: CliPositionalArg[UserSource] = Field(description=RUN)
    output: UserPath | None = Field(
        default=None,
        validation_alias=OUTPUT,
        description="JSON file to write, and beside it a folder; by default evaluation.json in the run directory. A "
        "downloaded run needs it.",
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Images per forward pass; by default as in training."
    )
    max_detections: int | None = Field(
        default=None, ge=100, description="Detections per image that count; by default as in training."
    )
    data: _DATA = Field(default_factory=_no_settings, description="Settings of the dataset.")

    def execute(self) -> int:
        """Run the command."""
        result = evaluate_run(
            self.run,
            data_changes=_overrides(self).get("data"),
            batch_size=self.batch_size,
            max_detections=self.max_detections,
            output=self.output,
        )
        if Processes().is_main:
            print(result.table)
            print(result.class_table)
            if result.panoptic_table is not None:
                print(f"panoptic quality\n{result.panoptic_table}")
        return 0


class Predict(BaseModel):
    """Detect objects in images and videos: write pictures with boxes, masks, names and scores, and predictions.json.

    If the model predicts masks and some of its labels are stuff, panoptic pictures of images are written, too.
    Files that cannot be read are reported and skipped. The exit status is then 1.
    """

    run: CliPositionalArg[UserSource] = Field(description=RUN)
    images: CliPositionalArg[list[UserPath]] = Field(description="Files, folders, patterns such as 'photos/**/*.jpg'.")
    output: UserPath = Field(validation_alias=OUTPUT, description="Folder to write to, which is created.")
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="Lowest score to draw; predictions.json has all detections."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Images per forward pass; by default 1 on a CPU and 8 on a GPU."
    )
    font: UserPath | None = Field(default=None, description="Font file for names; by default one with the characters.")

    def execute(self) -> int:
        """Run the command."""
        result = predict(
            self.run, self.images, self.output, threshold=self.threshold, batch_size=self.batch_size, font=self.font
        )
        pictures = len({image["file"] for image in result.images})
        print(f"{pictures} pictures and predictions.json in {self.output}; {len(result.skipped)} files skipped")
        for remark in result.remarks(self.threshold):
            print(remark)
        return 1 if result.skipped else 0


class Check(BaseModel):
    """Check the dataset of CONFIG: annotations, image files and, with --decode, the content of every image.

    With --draw, also write a picture of the first training images as training will see them, with their boxes.
    """

    config: CliPositionalArg[UserPath] = Field(description="YAML or JSON file.")
    decode: CliToggleFlag[bool] = Field(default=False, description="Decode every image to find broken ones.")
    draw: UserPath | None = Field(
        default=None, description="Picture to write: augmented training images with boxes, as .png or .jpg."
    )
    data: _DATA = Field(default_factory=_no_settings, description="Settings of the dataset.")

    def execute(self) -> int:
        """Run the command."""
        if self.draw is not None:
            check_picture(self.draw)
        experiment = read_experiment(self.config, _overrides(self))
        self._check(experiment)
        if self.draw is not None:
            save_image(draw_augmented(experiment), self.draw)
            print(f"augmented training images: {self.draw}")
        return 0

    def _check(self, experiment: Experiment) -> None:
        limits = object_limits(experiment)
        if not self.decode:
            print(check(experiment.data, masks=experiment.model.masks, limits=limits))
            return
        with ProgressDisplay("decoding", 1) as display:
            report = check(
                experiment.data,
                decode=True,
                masks=experiment.model.masks,
                limits=limits,
                progress=lambda done, total: display.update(done, total=total),
            )
        print(report)


class Presets(BaseModel):
    """List the presets, for `model: {preset: NAME}` in a config."""

    def execute(self) -> int:
        """Run the command."""
        width = max(map(len, PRESETS))
        for name, config in PRESETS.items():
            print(f"{name:<{width}}  {_summary(config)}")
        return 0


class Config(BaseModel):
    """Print a config file with every setting, its default and its description, to start from."""

    preset: CliPositionalArg[str] = Field(default="deformable_detr_r50", description="Preset of the model.")

    def execute(self) -> int:
        """Run the command."""
        data = DataConfig(
            train_images=Path("data/train"),
            train_annotations=Path("data/train.json"),
            val_images=Path("data/val"),
            val_annotations=Path("data/val.json"),
        )
        # The backbone of a preset has random weights, from which no frozen norm or stage can be trained.
        model = with_backbone_weights(preset(self.preset), "DEFAULT")
        settings = commented_yaml(Experiment(model=model, data=data), leave_out=("model.num_classes",))
        print("# All settings with their defaults, which apply if they are left out. $VARIABLES in paths are expanded.")
        print(settings, end="")
        return 0


class Schema(BaseModel):
    """Print the JSON schema of config files, for completion and checks in editors."""

    def execute(self) -> int:
        """Run the command."""
        print(json.dumps(experiment_schema(), indent=2))
        return 0


class Demo(BaseModel):
    """Train a small model on synthetic shapes, evaluate it and draw its detections, in minutes on two CPU cores."""

    output: UserPath = Field(
        default=Path("runs/demo"),
        validation_alias=OUTPUT,
        description="Run directory; an earlier demonstration in it is replaced.",
    )
    masks: CliToggleFlag[bool] = Field(default=False, description="Predict masks too, which takes longer.")

    def execute(self) -> int:
        """Run the command."""
        result = run_demo(self.output, demo_experiment(masks=True) if self.masks else None)
        print(result.evaluation.table)
        print(f"detections beside ground truth: {result.detections}")
        print(f"sampling points of a decoder query: {result.sampling_points}")
        return 0


class Commands(BaseSettings):
    """Train, evaluate and use Deformable DETR detectors.

    From a dataset in COCO format to detections:
      deformdetr config > detector.yaml           (then put in the paths of your dataset)
      deformdetr check detector.yaml --decode
      deformdetr train detector.yaml --output runs/detector
      deformdetr eval runs/detector
      deformdetr predict runs/detector photo.jpg --output predictions
    Without any data, in minutes on a CPU:
      deformdetr demo
    """

    model_config = SettingsConfigDict(
        cli_prog_name="deformdetr",
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="null",
    )

    debug: CliToggleFlag[bool] = Field(default=False, description="Show the traceback of an error.")
    version: CliToggleFlag[bool] = Field(default=False, description="Print the version.")
    train: CliSubCommand[Train] = Field(description="Train the model that a config describes.")
    eval: CliSubCommand[Eval] = Field(description="Evaluate a run: COCO's average precision and recall.")
    predict: CliSubCommand[Predict] = Field(description="Detect objects in image and video files.")
    check: CliSubCommand[Check] = Field(description="Check a dataset before training on it.")
    coco: CliSubCommand[Coco] = Field(description="Turn a dataset of YOLO or Pascal VOC into COCO files.")
    split: CliSubCommand[Split] = Field(description="Split a COCO file into training and evaluation.")
    shards: CliSubCommand[Shards] = Field(
        description="Write a COCO dataset as tar files, for disks that are too small."
    )
    presets: CliSubCommand[Presets] = Field(description="List the models to start from.")
    config: CliSubCommand[Config] = Field(description="Print a config file to start from.")
    summary: CliSubCommand[Summary] = Field(description="Print shapes, parameters, FLOPs and memory of a model.")
    schema_: CliSubCommand[Schema] = Field(alias="schema", description="Print the JSON schema of config files.")
    convert: CliSubCommand[Convert] = Field(description="Convert a checkpoint to another implementation's names.")
    export: CliSubCommand[Export] = Field(description="Write a trained model as an ONNX file.")
    demo: CliSubCommand[Demo] = Field(description="Train, evaluate and draw on synthetic shapes, in minutes on a CPU.")


class UsageError(ValueError):
    """The command line is not valid."""


def run(arguments: Sequence[str]) -> int:
    """Run the command in the arguments and return its exit status.

    Raises:
        UsageError: If the command or an option is not valid.
    """
    try:
        commands = CliApp.run(Commands, cli_args=list(arguments))
    except SettingsError as error:
        raise UsageError(_explain(str(error), arguments)) from error
    except ValidationError as error:
        raise UsageError(_explain_values(error)) from error
    if commands.version:
        print(__version__)
        return 0
    command: Any = get_subcommand(commands, is_required=False)
    if command is None:
        return run(["--help"])
    status: int = command.execute()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return status


def _overrides(command: BaseModel) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    sections = ("model", "data", "train")
    return {name: getattr(command, name) for name in sections if name in command.model_fields_set}


def _explain(message: str, arguments: Sequence[str]) -> str:
    """Return a readable form of argparse's message, with suggestions for an unknown option."""
    message = message.removeprefix("error parsing CLI: ")
    name = next((each for each in arguments if not each.startswith("-")), "")
    field = next((field for key, field in Commands.model_fields.items() if name == (field.alias or key)), None)
    models = [] if field is None else models_in(field.annotation)
    unknown = re.findall(r"--([\w.-]+)", message) if message.startswith("unrecognized arguments") else []
    if not (models and unknown):
        return f"{message}; see `deformdetr{f' {name}' if models else ''} --help`"
    known = list(setting_names(models[0]))
    return "\n".join(f"`deformdetr {name}` has no option --{each}{suggest(each, known)}" for each in unknown)


def _explain_values(error: ValidationError) -> str:
    """Return a message that names missing options and those with invalid values."""
    lines = []
    for problem in error.errors(include_url=False):
        command, *names = map(str, problem["loc"])
        if problem["type"] == "missing":
            lines.append(f"`deformdetr {command}` needs --{'.'.join(names)}; see `deformdetr {command} --help`")
        else:
            lines.append(f"--{'.'.join(names)}: {problem['msg']}, got {problem['input']!r:.60}")
    return "\n".join(lines)


def _summary(config: DeformableDETRConfig | DETRConfig) -> str:
    """Return the main properties of a preset."""
    backbone = config.backbone
    match backbone:
        case ResNetConfig():
            network = backbone.name + (" DC5" if backbone.dilation else "")
        case DATConfig() | TimmConfig():
            network = backbone.name
        case _:
            network = "small CNN"
    parts = [network, f"{config.num_queries} queries", f"d_model {config.d_model}"]
    if isinstance(config, DeformableDETRConfig):
        parts.insert(1, f"{config.num_feature_levels} level{'s' if config.num_feature_levels > 1 else ''}")
        parts += ["box refinement"] * config.with_box_refine + ["two-stage"] * config.two_stage
        parts += ["denoising"] * (config.denoising is not None)
    parts += ["masks"] * config.masks
    return ", ".join(parts)
