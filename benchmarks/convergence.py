"""Measure how many epochs DETR and Deformable DETR take to learn the same task: finding shapes, many of them small.

`python -m benchmarks.convergence --tune` tries learning rates, and `--run` trains every variant from scratch, on the
same data and in the same way. Both resume interrupted runs. They write `benchmarks/results/convergence_cpu.json` and,
from it, the chart and the tables; without either, only these are written.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from benchmarks.pages import RESULTS, ROOT, Parts, Report, markdown
from benchmarks.pictures import draw_curves
from deformdetr.config import ConvBackboneConfig, DeformableDETRConfig, DETRConfig, FocalCriterionConfig, preset
from deformdetr.data import ShapesConfig, build_dataset
from deformdetr.engine import (
    Experiment,
    Processes,
    RunDirectory,
    StepSchedule,
    TrainConfig,
    evaluate,
    load_run,
    read_experiment,
    train,
)

CHART = ROOT / "docs" / "images" / "convergence_cpu.svg"
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
_MORE = 4 * DATA.num_train
# For variants with more pictures, an epoch has as many steps as for the others.
EPOCHS = 60


class Variant(NamedTuple):
    """A model, its learning rate and the number of its training pictures."""

    label: str
    model: DETRConfig | DeformableDETRConfig
    lr: float
    num_train: int = DATA.num_train


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
    "detr_dc5_more": Variant(f"DETR-DC5, {_MORE:,} pictures", _DC5, 3e-4, _MORE),
    "deformable_detr_more": Variant(f"Deformable DETR, {_MORE:,} pictures", _DEFORMABLE, 1e-3, _MORE),
}
BASELINES = ("detr", "detr_dc5", "detr_dc5_plus", "detr_dc5_more")
# The variants whose learning rate is chosen from `RATES`, by the epochs of a trial; the others use the same rates.
TUNED: Mapping[str, int] = {"detr_dc5": 10, "deformable_detr": 4}
RATES = (1e-4, 3e-4, 1e-3)
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium")


def experiment(name: str, *, lr: float | None = None, epochs: int = EPOCHS, is_quick: bool = False) -> Experiment:
    """Return the config of a run, by default with the variant's own rate; a quick run only tests that it works."""
    variant = VARIANTS[name]
    passes = variant.num_train // DATA.num_train
    settings = TRAIN.replace(lr=variant.lr if lr is None else lr, epochs=epochs // passes)
    if passes > 1:
        settings = settings.replace(eval_every=1, save_every=1)
    data = DATA.replace(num_train=variant.num_train)
    if is_quick:
        settings = settings.replace(epochs=2, batch_size=2)
        data = data.replace(num_train=4, num_val=2)
    return Experiment(model=variant.model, data=data, train=settings)


def run(name: str, runs: Path, *, lr: float | None = None, epochs: int = EPOCHS, is_quick: bool = False) -> None:
    """Train a variant, or resume its run."""
    described = experiment(name, lr=lr, epochs=epochs, is_quick=is_quick)
    print(f"== {VARIANTS[name].label}, learning rate {described.train.lr:g}")
    train(described, runs / f"{name}-lr{described.train.lr:g}-seed0", resume=True)


def collect(runs: Path, commit: str) -> dict[str, Any]:
    """Read all runs, finished or not."""
    directories = [RunDirectory(path) for path in sorted(runs.iterdir())]
    return {
        "commands": ["python -m benchmarks.convergence --tune", "python -m benchmarks.convergence --run"],
        "commit": commit,
        "objects": _count_objects(),
        "runs": [_read(directory) for directory in directories if any("AP" in row for row in directory.read_metrics())],
    }


def _read(directory: RunDirectory) -> dict[str, Any]:
    described: Any = read_experiment(directory.config)
    environment = json.loads(directory.environment.read_text(encoding="utf-8"))
    curve = directory.read_metrics()
    return {
        "variant": directory.path.name.partition("-lr")[0],
        "lr": described.train.lr,
        "seed": described.train.seed,
        "num_train": described.data.num_train,
        "parameters": sum(each.numel() for each in described.model.build().parameters()),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in curve),
        # Without the command and the platform, which describe the machine.
        "environment": {name: environment[name] for name in ("deformdetr", "torch", "python", "device", "threads")},
        "curve": [{name: row[name] for name in ("epoch", "loss", *METRICS)} for row in curve if "AP" in row],
        "on_training_pictures": _evaluate_on_training_pictures(directory),
    }


def _evaluate_on_training_pictures(directory: RunDirectory) -> dict[str, Any]:
    """Evaluate the last checkpoint on training pictures, as many as there are validation pictures."""
    _, checkpoint = load_run(directory.path, prefer=("last.pt",))
    data: Any = checkpoint.experiment.data
    seen = data.replace(num_train=min(data.num_train, DATA.num_val), augment=data.augment.replace(flip=0.0))
    evaluation = evaluate(
        checkpoint.build(),
        checkpoint.experiment.model.build_postprocess(),
        build_dataset(seen, "train"),
        Processes(),
        batch_size=checkpoint.experiment.train.batch_size,
    )
    metrics: dict[str, Any] = dict(evaluation.metrics)
    return {"epoch": checkpoint.epoch, **{name: metrics[name] for name in METRICS}}


def _count_objects() -> dict[str, int]:
    """Count the validation objects by COCO's sizes."""
    annotations = build_dataset(DATA, "val").coco_ground_truth().anns.values()
    counts, _ = np.histogram([each["area"] for each in annotations], bins=[0, 32**2, 96**2, np.inf])
    return dict(zip(("small", "medium", "large"), counts.tolist(), strict=True))


def highest(curve: Curve, metric: str = "AP") -> float:
    """Return the highest value of a metric."""
    return max(metrics[metric] for metrics in curve.values())


def first_reaching(curve: Curve, value: float, metric: str = "AP") -> int | None:
    """Return the first epoch at which a metric reaches a value, or `None`."""
    return next((epoch for epoch in sorted(curve) if curve[epoch][metric] >= value), None)


def curves(results: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the curve of every trained variant with its own learning rate."""
    return {
        name: {point["epoch"] * _passes(own): {each: point[each] for each in METRICS} for point in own["curve"]}
        for name in VARIANTS
        if (own := _run(results, name))
    }


def table(results: Mapping[str, Any], found: Mapping[str, Curve]) -> str:
    """Return precision over the epochs, and the epochs after which each variant reaches every DETR's best."""
    last = max(max(curve) for curve in found.values())
    epochs = [epoch for epoch in (4, 8, 12, 20, 40, EPOCHS, 2 * EPOCHS, 200) if epoch <= last]
    baselines = [name for name in BASELINES if name in found]
    heads = ["", "parameters", "seconds per epoch", *(f"epoch {epoch}" for epoch in epochs), "on training pictures"]
    heads += [f"epochs to the best of {VARIANTS[name].label} in {EPOCHS}" for name in baselines]
    rows = []
    for name, curve in found.items():
        own = _run(results, name)
        fitted = own["on_training_pictures"]
        row = [VARIANTS[name].label, f"{own['parameters']:,}", f"{own['seconds_per_epoch'] / _passes(own):.1f}"]
        row += [_with_small(curve[epoch]) if epoch in curve else "" for epoch in epochs]
        row += [f"{_with_small(fitted)}, epoch {fitted['epoch'] * _passes(own)}"]
        for baseline in baselines:
            best = _until(found[baseline], EPOCHS)
            reached = [first_reaching(curve, highest(best, metric), metric) for metric in ("AP", "AP_small")]
            overall, small = ("never" if epoch is None else epoch for epoch in reached)
            row.append(f"{overall} ({small})")
        rows.append(row)
    return markdown(heads, rows)


def tuning_table(results: Mapping[str, Any]) -> str:
    """Return precision by learning rate."""
    rows = []
    for name, epochs in TUNED.items():
        cells = []
        for lr in RATES:
            tried = _run(results, name, lr)
            points = [point for point in tried["curve"] if point["epoch"] == epochs] if tried else []
            cells.append(_with_small(points[0]) if points else "")
        rows.append([f"{VARIANTS[name].label}, epoch {epochs}", *cells])
    return markdown(["AP", *(f"learning rate {lr:g}" for lr in RATES)], rows)


def summary(found: Mapping[str, Curve]) -> str:
    """Return a sentence per DETR: when Deformable DETR reaches its best precision, in `EPOCHS` epochs and in all."""
    sentences = []
    for name in (name for name in BASELINES if name in found):
        last = max(found[name])
        clauses = []
        for epochs in sorted({min(EPOCHS, last), last}):
            precision = highest(_until(found[name], epochs))
            reached = first_reaching(found["deformable_detr"], precision)
            share = "never reaches" if reached is None else f"reaches after {reached} ({reached / epochs:.1%})"
            clauses.append(f"{precision:.3f} in {epochs} epochs, which Deformable DETR {share}")
        sentences.append(f"{VARIANTS[name].label} has an AP of {', and of '.join(clauses)}.")
    return " ".join(sentences)


def provenance(results: Mapping[str, Any]) -> str:
    """Return the commands, versions and number of objects behind the table, and the variants that it lacks."""
    objects = results["objects"]
    environment, commands = results["runs"][0]["environment"], " and ".join(f"`{each}`" for each in results["commands"])
    missing = [variant.label for name, variant in VARIANTS.items() if not _run(results, name)]
    return (
        f"Of the {sum(objects.values()):,} objects in the validation pictures {objects['small']:,} are small and "
        f"{objects['medium']:,} medium. {commands}, some continued with `--epochs`; torch "
        f"{environment['torch'].split('+')[0]}, deformdetr {environment['deformdetr']}, commit {results['commit']}, "
        f"{environment['threads']} thread of a busy x86-64 CPU, so that seconds are an upper bound; one seed. "
        f"`benchmarks/results/{REPORT.stored.name}` has every evaluation."
        + (f" Not trained yet: {'; '.join(missing)}." if missing else "")
    )


def parts(results: Mapping[str, Any]) -> Parts:
    """Return the generated parts of the page."""
    found = curves(results)
    texts = {
        "summary": summary(found),
        "table": f"{table(results, found)}\n\n{provenance(results)}",
        "tuning": tuning_table(results),
    }
    return {ROOT / "docs" / "convergence.md": texts}


REPORT = Report(RESULTS / "convergence_cpu.json", parts)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the curves of all variants."""
    found = curves(results)
    panels = {
        metric: (label, max(highest(found[name], metric) for name in BASELINES if name in found))
        for metric, label in (("AP", "AP"), ("AP_small", "AP of small objects"))
    }
    title = "Average precision on 200 pictures of shapes (an epoch is 125 steps; dotted: the best DETR)"
    draw_curves({VARIANTS[name].label: curve for name, curve in found.items()}, panels, title, path)


def _run(results: Mapping[str, Any], name: str, lr: float | None = None) -> dict[str, Any] | None:
    """Return the run of a variant with a learning rate, by default its own, if there is one."""
    lr = VARIANTS[name].lr if lr is None else lr
    return next((run for run in results["runs"] if run["variant"] == name and run["lr"] == lr), None)


def _passes(run: Mapping[str, Any]) -> int:
    """Return how many epochs of other variants have as many steps as one of this run's."""
    return int(run["num_train"] // DATA.num_train)


def _with_small(metrics: Mapping[str, float]) -> str:
    return f"{metrics['AP']:.3f} ({metrics['AP_small']:.3f})"


def _until(curve: Curve, last: int) -> Curve:
    return {epoch: metrics for epoch, metrics in curve.items() if epoch <= last}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="try learning rates")
    parser.add_argument("--run", action="store_true", help="train")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="only this variant; repeatable")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="total; more continue a run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works; nothing is stored")
    parser.add_argument("--commit", default="unknown", help="commit of the code that is measured")
    options = parser.parse_args(arguments)
    names = options.only or list(VARIANTS)
    # Tensors this small gain little from a second thread, and lose much where the other core is busy.
    torch.set_num_threads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                run(name, Path(folder), is_quick=True)
        return
    if options.tune:
        for name in (name for name in names if name in TUNED):
            for lr in RATES:
                run(name, RUNS, lr=lr, epochs=TUNED[name])
    if options.run:
        for name in names:
            run(name, RUNS, epochs=options.epochs)
    REPORT.update(collect(RUNS, options.commit) if options.tune or options.run else None, indent=1)
    draw(REPORT.load(), CHART)


if __name__ == "__main__":
    main()
