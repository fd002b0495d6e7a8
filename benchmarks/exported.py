"""Time exported models in onnxruntime and OpenVINO beside the models in PyTorch, on the CPU.

`python -m benchmarks.exported` measures, and writes the table of `docs/export.md`. It needs the package `openvino`,
which no extra installs.
"""

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.environment import describe_source
from benchmarks.measure import WallClock, interleave
from benchmarks.model import build_ours
from benchmarks.pages import DOCS, Parts, markdown, read, source, store, write
from deformdetr import preset
from deformdetr.integrations.export import export_onnx
from deformdetr.structures import ImageBatch

STORED = "exported_cpu.json"
PRESETS = ("deformable_detr_r50",)
SAMPLING = ("grid_sample", "gather")
SIZE = (480, 640)
ROUNDS = 5

Call: TypeAlias = Callable[[], Mapping[str, Tensor]]
"""Returns the outputs for one batch, by name."""


def open_onnxruntime(path: Path, batch: ImageBatch) -> Call:
    """Load a file into onnxruntime, on as many threads as PyTorch has."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = {name: tensor.numpy() for name, tensor in batch._asdict().items()}
    return lambda: dict(zip(names, map(torch.from_numpy, session.run(names, inputs)), strict=True))


def open_openvino(path: Path, batch: ImageBatch) -> Call:
    """Load a file into OpenVINO, in float32 on as many threads as PyTorch has."""
    openvino: Any = importlib.import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    names = [output.any_name for output in model.outputs]
    inputs = {name: tensor.numpy() for name, tensor in batch._asdict().items()}

    def call() -> Mapping[str, Tensor]:
        outputs = model(inputs)
        return {name: torch.from_numpy(outputs[name].copy()) for name in names}

    return call


ENGINES: Mapping[str, Callable[[Path, ImageBatch], Call]] = {"onnxruntime": open_onnxruntime, "OpenVINO": open_openvino}


def measure(
    model: nn.Module, batch: ImageBatch, engines: Sequence[str], folder: Path, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Time a model, and every engine with both forms of its file, in turns, by the processor time of this process.

    The error is the largest difference from the model's logits and boxes.
    """
    run = torch.no_grad()(partial(model, *batch))
    calls: dict[tuple[str, str], Call] = {("PyTorch", ""): run}
    for sampling in SAMPLING:
        path = folder / f"{sampling}.onnx"
        export_onnx(model, path, sampling=sampling, images=list(batch.images))
        calls |= {(engine, sampling): ENGINES[engine](path, batch) for engine in engines}
    expected = run()
    errors = [_error(call(), expected) for call in calls.values()]
    samples = {" ".join(key): WallClock(call, name="processor").sample for key, call in calls.items()}
    times = list(interleave(samples, dict.fromkeys(samples, rounds)).values())
    speed_ups = [median(map(truediv, times[0], taken)) for taken in times]
    return [
        {"engine": engine, "sampling": sampling, "seconds": min(taken), "speed_up": speed_up, "error": error}
        for (engine, sampling), taken, speed_up, error in zip(calls, times, speed_ups, errors, strict=True)
    ]


def _error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in ("pred_logits", "pred_boxes"))


def collect() -> dict[str, Any]:
    """Measure all models with random weights, on one image each."""
    torch.set_num_threads(1)
    batch = ImageBatch.from_images([torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0))])
    rows = []
    for name in PRESETS:
        model = build_ours(preset(name), "cpu", seed=0).module
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(model, batch, list(ENGINES), Path(folder)):
                rows.append({"preset": name, **row})
                print(rows[-1], flush=True)
    packages = ("torch", "numba", "onnxruntime", "openvino")
    return {**describe_source("python -m benchmarks.exported", packages=packages), "rounds": ROUNDS, "rows": rows}


def parts() -> Parts:
    """Return the table of the page."""
    results = read(STORED)
    cells = [
        [
            f"`{row['preset']}`",
            row["engine"],
            f"`{row['sampling']}`" if row["sampling"] else "",
            f"{row['seconds']:.2f} s",
            f"{row['speed_up']:.2f} ×",
            f"{row['error']:.1g}" if row["sampling"] else "",
        ]
        for row in results["rows"]
    ]
    heads = ["model", "engine", "`--sampling`", "one image", "times as fast as PyTorch", "largest difference"]
    return {(DOCS / "export.md", ""): f"{markdown(heads, cells, left=3)}\n\n{source(STORED)}"}


if __name__ == "__main__":
    store(STORED, collect())
    write(parts())
