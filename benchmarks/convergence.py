"""Measure how many epochs DETR and Deformable DETR take to learn the same task: finding shapes, many of them small.

`python -m benchmarks.convergence --run` trains every variant from scratch, on the same data and in the same way. It
resumes interrupted runs and, once there are all, writes the chart and the table of `docs/convergence.md`.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from benchmarks.environment import ROOT, describe_source
from benchmarks.pages import DOCS, Parts, markdown, read, source, store, write
from benchmarks.pictures import IMAGES, draw_curves
from deformdetr import engine
from deformdetr.config import ConvBackboneConfig, DeformableDETRConfig, DETRConfig, FocalCriterionConfig, preset
from deformdetr.data import ShapesConfig, build_dataset
from deformdetr.engine import Experiment, RunDirectory, StepSchedule, TrainConfig

STORED = "convergence_cpu.json"
CHART = IMAGES / "convergence_cpu.svg"
RUNS = ROOT / "runs" / "convergence"

Curve: TypeAlias = Mapping[int, Mapping[str, float]]
"""Metrics by name, by the epochs after which they were measured."""

DATA = ShapesConfig(num_train=2000, num_val=200, image_size=96, min_size=0.09, max_size=0.6)
TRAIN = TrainConfig(
    batch_size=16,
    # Given, because the recipes of the models differ.
    lr=2e-4,
    lr_backbone_multiplier=1.0,
    lr_sampling_multiplier=0.1,
    # Constant, so that the precision after n epochs is that of a run of n epochs.
    schedule=StepSchedule(drop_epochs=()),
    warmup_steps=100,
    seed=0,
    eval_every=2,
    save_every=2,
)
_BACKBONE = ConvBackboneConfig(channels=(16, 32, 64, 128))
_SIZES: dict[str, Any] = {
    "num_classes": 3,
    "num_queries": 20,
    "d_model": 64,
    "n_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "d_ffn": 256,
    "dropout": 0.0,
    "backbone": _BACKBONE,
}
_DETR = DETRConfig().replace(**_SIZES)
_DC5 = _DETR.replace(backbone=_BACKBONE.replace(dilation=True))
_LEVELS = {"num_feature_levels": 3, "norm_groups": 8}
_DEFORMABLE = DeformableDETRConfig().replace(**_SIZES, **_LEVELS)
_DN = preset("dn_deformable_detr_r50").replace(**_SIZES, **_LEVELS)
_FEW_NOISED = {"kind": "cdn", "dn_number": 20}
# For variants with more pictures, an epoch has as many steps as for the others.
EPOCHS = 60


class Variant(NamedTuple):
    """A model, its learning rate, and how many times the pictures of other variants it is trained on."""

    label: str
    model: DETRConfig | DeformableDETRConfig
    lr: float
    times_pictures: int = 1


VARIANTS: Mapping[str, Variant] = {
    "detr": Variant("DETR", _DETR, 3e-4),
    "detr_dc5": Variant("DETR-DC5", _DC5, 3e-4),
    "detr_dc5_plus": Variant("DETR-DC5, focal loss", _DC5.replace(criterion=FocalCriterionConfig()), 3e-4),
    "deformable_detr": Variant("Deformable DETR", _DEFORMABLE, 1e-3),
    "refine": Variant("+ box refinement", _DEFORMABLE.replace(with_box_refine=True), 1e-3),
    "two_stage": Variant("++ two-stage", _DEFORMABLE.replace(with_box_refine=True, two_stage=True), 1e-3),
    "anchors": Variant("DN without denoising", _DN.replace(denoising=None), 1e-3),
    "denoising": Variant("DN", _DN, 1e-3),
    "dino": Variant("DINO", preset("dino_r50_4scale").replace(**_SIZES, **_LEVELS, denoising=_FEW_NOISED), 1e-3),
    "detr_dc5_more": Variant("DETR-DC5, 8,000 pictures", _DC5, 3e-4, times_pictures=4),
    "deformable_detr_more": Variant("Deformable DETR, 8,000 pictures", _DEFORMABLE, 1e-3, times_pictures=4),
}
BASELINES = ("detr", "detr_dc5", "detr_dc5_plus", "detr_dc5_more")
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium")


def experiment(name: str, epochs: int = EPOCHS) -> Experiment:
    """Return the config of a run."""
    variant = VARIANTS[name]
    settings = TRAIN.replace(lr=variant.lr, epochs=epochs // variant.times_pictures)
    if variant.times_pictures > 1:
        settings = settings.replace(eval_every=1, save_every=1)
    data = DATA.replace(num_train=DATA.num_train * variant.times_pictures)
    return Experiment(model=variant.model, data=data, train=settings)


def directory(name: str, runs: Path) -> RunDirectory:
    """Return the run directory of a variant."""
    return RunDirectory(runs / f"{name}-lr{VARIANTS[name].lr:g}-seed0")


def run(name: str, runs: Path, epochs: int = EPOCHS) -> None:
    """Train a variant, or resume its run."""
    print(f"== {VARIANTS[name].label}")
    engine.train(experiment(name, epochs), directory(name, runs).path, resume=True)


def collect(runs: Path) -> dict[str, Any]:
    """Read the runs of all variants, finished or not. Versions are those of the first."""
    everything = {name: directory(name, runs) for name in VARIANTS}
    found = {name: run for name, run in everything.items() if any("AP" in row for row in run.read_metrics())}
    environment = json.loads(next(iter(found.values())).environment.read_text(encoding="utf-8"))
    return {
        **describe_source("python -m benchmarks.convergence --run"),
        "versions": {name: environment[name] for name in ("torch", "python", "deformdetr")},
        "runs": {name: _read(run) for name, run in found.items()},
    }


def _read(directory: RunDirectory) -> dict[str, Any]:
    _, checkpoint = engine.load_run(directory.path, prefer=("last.pt",))
    settings = checkpoint.experiment
    data: Any = settings.data
    rows = directory.read_metrics()
    model = checkpoint.build()
    # As many training pictures as there are validation pictures.
    seen = data.replace(num_train=min(data.num_train, DATA.num_val), augment=data.augment.replace(flip=0.0))
    fitted: dict[str, Any] = engine.evaluate(
        model,
        settings.model.build_postprocess(),
        build_dataset(seen, "train"),
        engine.Processes(),
        batch_size=settings.train.batch_size,
    ).metrics
    return {
        "lr": settings.train.lr,
        "seed": settings.train.seed,
        "num_train": data.num_train,
        "parameters": sum(each.numel() for each in model.parameters()),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
        "curve": [{name: row[name] for name in ("epoch", "loss", *METRICS)} for row in rows if "AP" in row],
        "on_training_pictures": {"epoch": checkpoint.epoch, **{name: fitted[name] for name in METRICS}},
    }


def parts() -> Parts:
    """Return the generated parts of the page."""
    results = read(STORED)
    return {
        (DOCS / "convergence.md", "summary"): _summary(_curves(results)),
        (DOCS / "convergence.md", "table"): f"{_table(results)}\n\n{source(STORED)}",
    }


def draw(path: Path) -> None:
    """Draw the curves of all variants, and the best of all DETRs."""
    found = _curves(read(STORED))
    panels = {
        metric: (label, max(_highest(found[name], metric) for name in BASELINES))
        for metric, label in (("AP", "AP"), ("AP_small", "AP of small objects"))
    }
    title = "Average precision on 200 pictures of shapes (an epoch is 125 steps; dotted: the best DETR)"
    draw_curves({VARIANTS[name].label: curve for name, curve in found.items()}, panels, title, path)


def _curves(results: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the metrics of all variants by epochs of the same length."""
    return {
        name: {point["epoch"] * VARIANTS[name].times_pictures: point for point in run["curve"]}
        for name, run in results["runs"].items()
    }


def _highest(curve: Curve, metric: str = "AP", *, last: int | None = None) -> float:
    """Return the highest value of a metric up to the last epoch that counts."""
    return max(metrics[metric] for epoch, metrics in curve.items() if last is None or epoch <= last)


def _first_reaching(curve: Curve, value: float, metric: str = "AP") -> int | None:
    """Return the first epoch at which a metric reaches a value, or `None`."""
    return next((epoch for epoch in sorted(curve) if curve[epoch][metric] >= value), None)


def _with_small(metrics: Mapping[str, float]) -> str:
    return f"{metrics['AP']:.3f} ({metrics['AP_small']:.3f})"


def _summary(found: Mapping[str, Curve]) -> str:
    """Return a sentence per DETR: when Deformable DETR reaches its best precision, in `EPOCHS` epochs and in all."""
    sentences = []
    for name in BASELINES:
        last = max(found[name])
        clauses = []
        for epochs in sorted({min(EPOCHS, last), last}):
            precision = _highest(found[name], last=epochs)
            reached = _first_reaching(found["deformable_detr"], precision)
            share = "never reaches" if reached is None else f"reaches after {reached} ({reached / epochs:.1%})"
            clauses.append(f"{precision:.3f} in {epochs} epochs, which Deformable DETR {share}")
        sentences.append(f"{VARIANTS[name].label} has an AP of {', and of '.join(clauses)}.")
    return " ".join(sentences)


def _table(results: Mapping[str, Any]) -> str:
    """Return precision over the epochs, and the epochs after which each variant reaches every DETR's best."""
    found, runs = _curves(results), results["runs"]
    last = max(max(curve) for curve in found.values())
    epochs = [epoch for epoch in (4, 8, 12, 20, 40, EPOCHS, 2 * EPOCHS, 200) if epoch <= last]
    heads = ["", "parameters", "seconds per epoch", *(f"epoch {epoch}" for epoch in epochs), "on training pictures"]
    heads += [f"epochs to the best of {VARIANTS[name].label} in {EPOCHS}" for name in BASELINES]
    rows = []
    for name, curve in found.items():
        label, _, _, times = VARIANTS[name]
        own = runs[name]
        fitted = own["on_training_pictures"]
        row = [label, f"{own['parameters']:,}", f"{own['seconds_per_epoch'] / times:.1f}"]
        row += [_with_small(curve[epoch]) if epoch in curve else "" for epoch in epochs]
        row += [f"{_with_small(fitted)}, epoch {fitted['epoch'] * times}"]
        for baseline in BASELINES:
            bests = {metric: _highest(found[baseline], metric, last=EPOCHS) for metric in ("AP", "AP_small")}
            overall, small = (_first_reaching(curve, best, metric) or "never" for metric, best in bests.items())
            row.append(f"{overall} ({small})")
        rows.append(row)
    return markdown(heads, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", required=True, help="train, which takes hours")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="only this variant; repeatable")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="total; more continue a run (default: %(default)s)")
    options = parser.parse_args()
    # Tensors this small gain little from a second thread, and lose much where the other core is busy.
    torch.set_num_threads(1)
    for name in options.only or VARIANTS:
        run(name, RUNS, options.epochs)
    results = collect(RUNS)
    if absent := VARIANTS.keys() - results["runs"]:
        print(f"the table needs these variants as well: {', '.join(sorted(absent))}")
    else:
        store(STORED, results)
        draw(CHART)
        write(parts())
