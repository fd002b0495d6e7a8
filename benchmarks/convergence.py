"""Measure how many epochs DETR and Deformable DETR take to learn the same: to find shapes, many of them small.

`python -m benchmarks.convergence --tune` tries learning rates, and `--run` trains every variant from scratch, on the
same data and in the same way; both go on where they were stopped. They write `benchmarks/results/convergence_cpu.json`
and, from that, the chart and the tables; without either, only these are written.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.curves import Curve, first_reaching, highest, mean_curve, plot
from benchmarks.pages import RESULTS, ROOT, write_generated_part
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

STORED = RESULTS / "convergence_cpu.json"
PAGE = ROOT / "docs" / "convergence.md"
CHART = ROOT / "docs" / "images" / "convergence_cpu.svg"
RUNS = ROOT / "runs" / "convergence"

DATA = ShapesConfig(num_train=2000, num_val=200, image_size=96, min_size=0.09, max_size=0.6)
TRAIN = TrainConfig(
    batch_size=16,
    lr_backbone_multiplier=1.0,
    # A constant rate, so that every epoch's precision is that of a run of so many epochs.
    schedule=StepSchedule(drop_epochs=()),
    warmup_steps=100,
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
# An epoch is a pass over the pictures of most variants, and as many steps for those that have more.
EPOCHS = 60


class Variant(NamedTuple):
    """A model, with what learning rate it is trained, and on how many pictures."""

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
# Which variants have their learning rate chosen out of these, after how many epochs; the rest take theirs over.
TUNED: Mapping[str, int] = {"detr_dc5": 10, "deformable_detr": 4}
RATES = (1e-4, 3e-4, 1e-3)
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium")


def experiment(name: str, *, lr: float, epochs: int, seed: int, is_quick: bool) -> Experiment:
    """Describe one run; a quick one learns nothing, but shows that it works."""
    variant = VARIANTS[name]
    passes = variant.num_train // DATA.num_train
    settings = TRAIN.replace(lr=lr, epochs=epochs // passes, seed=seed)
    if passes > 1:
        settings = settings.replace(eval_every=1, save_every=1)
    if not is_quick:
        return Experiment(model=variant.model, data=DATA.replace(num_train=variant.num_train), train=settings)
    data = DATA.replace(num_train=4, num_val=2)
    return Experiment(model=variant.model, data=data, train=settings.replace(epochs=2, batch_size=2))


def tune(names: Sequence[str], runs: Path, *, is_quick: bool = False) -> None:
    """Train with every learning rate; the run of the one that is chosen is a beginning that `run` goes on from."""
    for name in names:
        for lr in RATES:
            _train(name, runs, lr=lr, epochs=TUNED[name], seed=0, is_quick=is_quick)


def run(names: Sequence[str], runs: Path, *, seed: int = 0, epochs: int = EPOCHS, is_quick: bool = False) -> None:
    """Train variants one after the other, each from where it was stopped."""
    for name in names:
        _train(name, runs, lr=VARIANTS[name].lr, epochs=epochs, seed=seed, is_quick=is_quick)


def _train(name: str, runs: Path, *, lr: float, epochs: int, seed: int, is_quick: bool) -> None:
    print(f"== {VARIANTS[name].label}, learning rate {lr:g}, seed {seed}")
    path = runs / f"{name}-lr{lr:g}-seed{seed}"
    train(experiment(name, lr=lr, epochs=epochs, seed=seed, is_quick=is_quick), path, resume=True)


def collect(runs: Path, commit: str) -> dict[str, Any]:
    """Read all runs, whether they came to their end or not."""
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
        # The command and the platform say something of the machine, not of the run.
        "environment": {name: environment[name] for name in ("deformdetr", "torch", "python", "device", "threads")},
        "curve": [{name: row[name] for name in ("epoch", "loss", *METRICS)} for row in curve if "AP" in row],
        "on_training_pictures": _evaluate_on_training_pictures(directory),
    }


def _evaluate_on_training_pictures(directory: RunDirectory) -> dict[str, Any]:
    """Say what the newest weights make of pictures that they were trained on, as many as there are to evaluate on."""
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
    """Count the objects to be found in evaluation, by COCO's sizes."""
    annotations = build_dataset(DATA, "val").coco_ground_truth().anns.values()
    counts, _ = np.histogram([each["area"] for each in annotations], bins=[0, 32**2, 96**2, np.inf])
    return dict(zip(("small", "medium", "large"), counts.tolist(), strict=True))


def curves(results: Mapping[str, Any]) -> dict[str, list[Curve]]:
    """Give the curves of every variant that was trained, with its own learning rate, one per seed."""
    found: dict[str, list[Curve]] = {}
    for name, variant in VARIANTS.items():
        chosen = [row for row in results["runs"] if row["variant"] == name and row["lr"] == variant.lr]
        if chosen:
            found[name] = [_curve(row) for row in chosen]
    return found


def _curve(row: Mapping[str, Any]) -> Curve:
    return {point["epoch"] * _passes(row): {name: point[name] for name in METRICS} for point in row["curve"]}


def _passes(row: Mapping[str, Any]) -> int:
    """Say how many epochs of the others one of this run's is: as many steps."""
    return int(row["num_train"] // DATA.num_train)


def table(results: Mapping[str, Any]) -> str:
    """Write precision over the epochs, and after how many each variant has what a DETR has at best in as many."""
    found = {name: mean_curve(runs) for name, runs in curves(results).items()}
    last = max(max(curve) for curve in found.values())
    epochs = [epoch for epoch in (4, 8, 12, 20, 40, EPOCHS, 2 * EPOCHS, 200) if epoch <= last]
    baselines = [name for name in BASELINES if name in found]
    heads = ["", "parameters", "seconds per epoch", *(f"epoch {epoch}" for epoch in epochs), "on training pictures"]
    heads += [f"epochs to the best of {VARIANTS[name].label} in {EPOCHS}" for name in baselines]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, curve in found.items():
        own = next(row for row in results["runs"] if row["variant"] == name and row["lr"] == VARIANTS[name].lr)
        fitted = own["on_training_pictures"]
        rows.append([VARIANTS[name].label, f"{own['parameters']:,}"])
        rows[-1] += [f"{own['seconds_per_epoch'] / _passes(own):.1f}"]
        rows[-1] += [_pair(curve[epoch]) if epoch in curve else "" for epoch in epochs]
        rows[-1] += [f"{_pair(fitted)}, epoch {fitted['epoch'] * _passes(own)}"]
        rows[-1] += [_reaching(curve, _until(found[baseline], EPOCHS)) for baseline in baselines]
    return _join(rows)


def tuning_table(results: Mapping[str, Any]) -> str:
    """Write precision by learning rate."""
    rows = [["AP", *(f"learning rate {lr:g}" for lr in RATES)], ["---", *["---:"] * len(RATES)]]
    for name, epochs in TUNED.items():
        cells = []
        for lr in RATES:
            tried = [row for row in results["runs"] if (row["variant"], row["lr"], row["seed"]) == (name, lr, 0)]
            points = [point for row in tried for point in row["curve"] if point["epoch"] == epochs]
            cells.append(_pair(points[0]) if points else "")
        rows.append([f"{VARIANTS[name].label}, epoch {epochs}", *cells])
    return _join(rows)


def _pair(metrics: Mapping[str, float]) -> str:
    return f"{metrics['AP']:.3f} ({metrics['AP_small']:.3f})"


def _reaching(curve: Curve, baseline: Curve) -> str:
    """Say when AP and AP of small objects are those of a baseline at its best."""
    reached = [first_reaching(curve, highest(baseline, metric)[1], metric) for metric in ("AP", "AP_small")]
    general, small = ("never" if epoch is None else str(epoch) for epoch in reached)
    return f"{general} ({small})"


def _join(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def summary(results: Mapping[str, Any]) -> str:
    """Say after how many epochs Deformable DETR has what a DETR has at best: in as many for both, and in all it had."""
    found = {name: mean_curve(runs) for name, runs in curves(results).items()}
    sentences = []
    for name in BASELINES:
        if name not in found:
            continue
        last = max(found[name])
        parts = [_compare(found, name, epochs) for epochs in sorted({min(EPOCHS, last), last})]
        sentences.append(f"{VARIANTS[name].label} reaches an AP of {', and of '.join(parts)}.")
    return " ".join(sentences)


def _compare(found: Mapping[str, Curve], name: str, epochs: int) -> str:
    precision = highest(_until(found[name], epochs))[1]
    reached = first_reaching(found["deformable_detr"], precision)
    share = "never has" if reached is None else f"has after {reached} ({reached / epochs:.1%})"
    return f"{precision:.3f} in {epochs} epochs, which Deformable DETR {share}"


def _until(curve: Curve, last: int) -> Curve:
    return {epoch: metrics for epoch, metrics in curve.items() if epoch <= last}


def provenance(results: Mapping[str, Any]) -> str:
    """Say where the numbers come from, and what is missing."""
    objects = results["objects"]
    environment, commands = results["runs"][0]["environment"], " and ".join(f"`{each}`" for each in results["commands"])
    missing = [variant.label for name, variant in VARIANTS.items() if name not in curves(results)]
    return (
        f"Of the {sum(objects.values()):,} objects in the validation pictures {objects['small']:,} are small and "
        f"{objects['medium']:,} medium. {commands}, some trained on with `--epochs`; torch "
        f"{environment['torch'].split('+')[0]}, deformdetr {environment['deformdetr']}, commit {results['commit']}, "
        f"{environment['threads']} thread of a busy x86-64 CPU, so that seconds are an upper bound; one seed. "
        f"`benchmarks/results/{STORED.name}` has every evaluation."
        + (f" Not trained yet: {'; '.join(missing)}." if missing else "")
    )


def parts(results: Mapping[str, Any]) -> dict[str, str]:
    """Write the generated parts of the page, by name."""
    return {
        "summary": summary(results),
        "table": f"{table(results)}\n\n{provenance(results)}",
        "tuning": tuning_table(results),
    }


def write_pages(results: Mapping[str, Any]) -> None:
    """Draw the chart, and put the tables into the page."""
    found = curves(results)
    baselines = [mean_curve(found[name]) for name in BASELINES if name in found]
    targets = {metric: max(highest(curve, metric)[1] for curve in baselines) for metric in ("AP", "AP_small")}
    title = "Average precision on 200 pictures of shapes (an epoch is 125 steps; dotted: the best DETR)"
    plot({VARIANTS[name].label: runs for name, runs in found.items()}, targets, title, CHART)
    for name, text in parts(results).items():
        write_generated_part(PAGE, text, name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="try learning rates")
    parser.add_argument("--run", action="store_true", help="train")
    parser.add_argument("--collect", action="store_true", help="read the runs as far as they went")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="only this variant; repeat it for several")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: %(default)s)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=EPOCHS,
        help="in all; more go on (default: %(default)s)",
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs are kept (default: runs/convergence)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works; nothing is stored")
    parser.add_argument("--commit", default="unknown", help="commit of the code that is measured")
    options = parser.parse_args(arguments)
    names = options.only or list(VARIANTS)
    # Tensors this small gain little from a second thread, and lose much where the other core is busy.
    torch.set_num_threads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(names, Path(folder), is_quick=True)
        return
    if options.tune:
        tune([name for name in names if name in TUNED], options.runs)
    if options.run:
        run(names, options.runs, seed=options.seed, epochs=options.epochs)
    if options.tune or options.run or options.collect:
        results = collect(options.runs, options.commit)
        STORED.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(STORED.read_text(encoding="utf-8"))
    write_pages(results)
    print(summary(results), table(results), tuning_table(results), sep="\n\n")


if __name__ == "__main__":
    main()
