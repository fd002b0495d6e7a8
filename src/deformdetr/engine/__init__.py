"""Training, evaluation and prediction, with run directories."""

from deformdetr.engine._augmentation_sheet import draw_augmented
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._config import Experiment
from deformdetr.engine._demo import DemoResult, demo_experiment, run_demo
from deformdetr.engine._errors import ConfigError, PredictionError, RunError, TrainingError, TrainingInterrupted
from deformdetr.engine._evaluate import Evaluation, evaluate, evaluate_run
from deformdetr.engine._experiment import experiment_schema, object_limits, read_experiment, resolve
from deformdetr.engine._gradient_checkpointing import enable_gradient_checkpointing
from deformdetr.engine._gradients import GradientReport, check_gradients
from deformdetr.engine._optimizer import build_optimizer, parameter_groups
from deformdetr.engine._predict import ImageDetections, PredictResult, predict
from deformdetr.engine._predictor import ImageSource, Predictor, load
from deformdetr.engine._processes import Processes
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._recipes import recipe
from deformdetr.engine._result import DetectionResult
from deformdetr.engine._run_directory import RunDirectory, load_run
from deformdetr.engine._schedule import learning_rate_factor
from deformdetr.engine._settings import describe, models_in, setting_names, suggest
from deformdetr.engine._summary import ModelSummary, Stage, summarize
from deformdetr.engine._train import TrainResult, train
from deformdetr.engine._train_config import (
    CosineSchedule,
    EarlyStoppingConfig,
    EMAConfig,
    StepSchedule,
    TrackingConfig,
    TrainConfig,
)
from deformdetr.engine._video import video_frames

__all__ = [
    "Checkpoint",
    "ConfigError",
    "CosineSchedule",
    "DemoResult",
    "DetectionResult",
    "EMAConfig",
    "EarlyStoppingConfig",
    "Evaluation",
    "Experiment",
    "GradientReport",
    "ImageDetections",
    "ImageSource",
    "ModelSummary",
    "PredictResult",
    "PredictionError",
    "Predictor",
    "Processes",
    "ProgressDisplay",
    "RunDirectory",
    "RunError",
    "Stage",
    "StepSchedule",
    "TrackingConfig",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "TrainingInterrupted",
    "build_optimizer",
    "check_gradients",
    "demo_experiment",
    "describe",
    "draw_augmented",
    "enable_gradient_checkpointing",
    "evaluate",
    "evaluate_run",
    "experiment_schema",
    "learning_rate_factor",
    "load",
    "load_run",
    "models_in",
    "object_limits",
    "parameter_groups",
    "predict",
    "read_experiment",
    "recipe",
    "resolve",
    "run_demo",
    "setting_names",
    "suggest",
    "summarize",
    "train",
    "video_frames",
]
