"""Runs of a second: a model with few channels on a few small images."""

from pathlib import Path
from typing import Any

from deformdetr.engine import Experiment, train

SETTINGS: dict[str, Any] = {
    "model": {
        "preset": "demo",
        "num_queries": 10,
        "num_feature_levels": 2,
        "d_model": 16,
        "n_heads": 2,
        "d_ffn": 32,
        "num_encoder_layers": 1,
        "norm_groups": 2,
        "backbone": {"channels": [8, 8, 8, 16]},
        "top_k": 20,
    },
    "data": {"kind": "shapes", "num_train": 12, "num_val": 5, "image_size": 64},
    "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3, "lr_backbone_multiplier": 1.0},
}


def tiny_experiment(**train_settings: Any) -> Experiment:
    """Return the experiment of a run of two epochs of three steps, with settings of training replaced."""
    return Experiment.model_validate(SETTINGS | {"train": SETTINGS["train"] | train_settings})


def tiny_run(directory: Path, **train_settings: Any) -> Path:
    """Train the tiny experiment, and return its run directory."""
    return train(tiny_experiment(**train_settings), directory).run
