"""ONNX files, run beside their model before they are called done."""

import copy
import importlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from deformdetr import _compat
from deformdetr.integrations._export_check import Comparison, FileOutputs, Run, check_batches, compare
from deformdetr.integrations._export_program import AnyPostProcess, ExportError, export_program, output_names
from deformdetr.integrations._export_sampling import Sampling, decompositions

_EXTRA = ("onnx", "onnxruntime", "onnxscript")
# PyTorch writes its operators in this version; newer ones are made from it by onnxscript, the one before it here.
_WRITTEN_OPSET = 18
_OLDEST_OPSET = _WRITTEN_OPSET - 1


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how close to the model it is.

    Attributes:
        path: The file.
        opset: Version of ONNX's operators.
        sampling: What deformable attention became.
        nodes: How many nodes the graph has.
        tolerance: Largest difference that was allowed.
        comparisons: What was compared, a batch each.
    """

    path: Path
    opset: int
    sampling: Sampling
    nodes: int
    tolerance: float
    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        head = f"{self.path}: opset {self.opset}, {self.sampling}, {self.nodes} nodes"
        return "\n".join([head, *map(str, self.comparisons)])


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    sampling: Sampling = "grid_sample",
    opset: int = _WRITTEN_OPSET,
    postprocess: AnyPostProcess | None = None,
    images: Sequence[Float[Tensor, "3 _ _"]] | None = None,
    tolerance: float = 1e-3,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a detector as an ONNX file for any batch, height and width, once it computes what the model does.

    Inputs and outputs are those of `export_program`. The file is in float32 and needs no custom operators. It is
    written beside its place, run by onnxruntime on several batches and compared with the model, and renamed into place
    only if no difference is larger than `tolerance`.

    Args:
        model: Called with images and padding mask, gives `Predictions`; it is left as it is.
        path: Where to, `.onnx`.
        sampling: What deformable attention becomes: `grid_sample` samples level by level, `gather` reads the four
            pixels around all samples.
        opset: Version of ONNX's operators, 17 or newer.
        postprocess: What turns predictions into detections, to be part of the file.
        images: Normalised images of any sizes to compare on; None draws noise.
        tolerance: Largest difference of a logit or a mask, and of a box as a fraction of the image.
        metadata: Kept in the file.
        overwrite: Whether to replace a file.

    Raises:
        ModuleNotFoundError: If a package of the extra `onnx` is not installed.
        ExportError: If the model cannot be exported, or the file does not compute the same; there is no file then.
        FileExistsError: If there is a file already, which must not be overwritten.
        FileNotFoundError: If there is no such folder.
        ValueError: If the suffix or the opset is wrong, or there is no image.
    """
    path = Path(path)
    _require_extra()
    _check_path(path, overwrite=overwrite)
    if opset < _OLDEST_OPSET:
        raise ValueError(f"opset must be {_OLDEST_OPSET} or newer, got {opset}")
    if images is not None and not images:
        raise ValueError("images must hold at least one image to compare on, got none")
    batches = check_batches(_noise() if images is None else [image.float().cpu() for image in images])

    model = copy.deepcopy(model).float().cpu().eval()
    content = _translate(model, postprocess, sampling, opset, metadata or {})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content.SerializeToString())
        run = _load(unfinished)
        comparisons = tuple(compare(model, run, batch, postprocess=postprocess) for batch in batches)
        _judge(comparisons, tolerance)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return ExportReport(
        path=path,
        opset=opset,
        sampling=sampling,
        nodes=len(content.graph.node),
        tolerance=tolerance,
        comparisons=comparisons,
    )


def _require_extra() -> None:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'exporting needs {", ".join(missing)}: pip install "deformdetr[onnx]"', name=missing[0]
        )


def _check_path(path: Path, *, overwrite: bool) -> None:
    if path.suffix != ".onnx":
        raise ValueError(f"{path} must end in .onnx")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists already; overwrite=True, or --force, replaces a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")


def _noise() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in ((256, 320), (320, 224))]


def _translate(
    model: nn.Module, postprocess: AnyPostProcess | None, sampling: Sampling, opset: int, metadata: Mapping[str, str]
) -> Any:
    """Give the model as ONNX's `ModelProto`."""
    import onnx

    table = {**decompositions(sampling), torch.ops.aten.upsample_nearest2d.vec: _resize_to_nearest}
    program = export_program(model, postprocess=postprocess).run_decompositions(table)
    inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    outputs = output_names(program, postprocess)
    newer = max(opset, _WRITTEN_OPSET)
    with _without_remarks():
        try:
            # `ONNXProgram`, or None where a file is written at once.
            translated: Any = torch.onnx.export(
                program, input_names=inputs, output_names=outputs, opset_version=newer, dynamo=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the model has no form in ONNX: {error}") from error
    content = translated.model_proto
    (version,) = (each for each in content.opset_import if not each.domain)
    if version.version != newer:
        raise ExportError(f"the installed onnxscript cannot write opset {opset}, which is newer than it")
    if opset < newer:
        _write_as_opset_17(content.graph)
        version.version = opset
    _name_axes(content)
    onnx.helper.set_model_props(content, dict(metadata))
    return content


def _write_as_opset_17(graph: Any) -> None:
    """Undo what version 18 changed: axes of reductions became inputs, and splits into equal parts say into how many.

    Raises:
        ExportError: If the graph has something else from version 18, or axes that are computed.
    """
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.domain or onnx.defs.get_schema(node.op_type, _WRITTEN_OPSET).since_version < _WRITTEN_OPSET:
            continue
        kept = [each for each in node.attribute if each.name not in ("num_outputs", "noop_with_empty_axes")]
        if node.op_type.startswith("Reduce") and len(node.input) == 2 and node.input[1] in constants:
            axes = onnx.numpy_helper.to_array(constants[node.input.pop()]).tolist()
            kept.append(onnx.helper.make_attribute("axes", axes))
        elif node.op_type != "Split":
            raise ExportError(f"{node.op_type} of the exported graph has no form in opset {_OLDEST_OPSET}")
        del node.attribute[:]
        node.attribute.extend(kept)


def _resize_to_nearest(image: Tensor, size: Sequence[Any], scales: Sequence[float] | None) -> Tensor:
    """Choose pixels with PyTorch's rounding, which ONNX's `Resize` does not have: it divides where PyTorch multiplies.

    A padding mask that ends at one of the chosen pixels would end a pixel later on the feature map.
    """
    rows, columns = (_nearest(given, wanted, image) for given, wanted in zip(image.shape[2:], size, strict=True))
    return image[:, :, rows[:, None], columns]


def _nearest(given: Any, wanted: Any, like: Tensor) -> Tensor:
    sides = [torch.full((), side, dtype=torch.float32, device=like.device) for side in (given, wanted)]
    places = torch.arange(wanted, dtype=torch.float32, device=like.device) * (sides[0] / sides[1])
    return torch.minimum(places, sides[0] - 1).long()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep quiet what exporter and optimiser say about their own workings."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_axes(content: Any) -> None:
    """Call the axes of inputs and outputs what they are, in place of the tracer's symbols and formulas."""
    graph = content.graph
    batch, _, height, width = (axis.dim_param for axis in graph.input[0].type.tensor_type.shape.dim)
    names = {batch: "batch", height: "height", width: "width"}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), axis.dim_param)
    for value in graph.output:
        rows = value.type.tensor_type.shape.dim[1]
        if rows.dim_param:
            rows.dim_param = "queries" if value.name.startswith("pred_") else "detections"


def _load(path: Path) -> Run:
    """Run a file by onnxruntime."""
    import onnx

    onnxruntime: Any = importlib.import_module("onnxruntime")
    failures = _compat.onnxruntime_failures()
    content = onnx.load(path)
    names = [output.name for output in content.graph.output]
    choices = [node.output[1] for node in content.graph.node if node.op_type == "TopK"]
    content.graph.output.extend(onnx.ValueInfoProto(name=name) for name in choices)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors alone.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise ExportError(f"onnxruntime cannot load what was exported: {error}") from error

    def run(inputs: Mapping[str, Tensor]) -> FileOutputs:
        try:
            arrays = session.run([*names, *choices], {name: tensor.numpy() for name, tensor in inputs.items()})
        except failures as error:
            sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
            raise ExportError(f"onnxruntime cannot run what was exported on {sizes}: {error}") from error
        tensors = [torch.from_numpy(array) for array in arrays]
        return FileOutputs(dict(zip(names, tensors, strict=False)), tensors[len(names) :])

    return run


def _judge(comparisons: Sequence[Comparison], tolerance: float) -> None:
    """Refuse a file that computes something else.

    Raises:
        ExportError: If a difference is larger than the tolerance.
    """
    if not all(comparison.is_within(tolerance) for comparison in comparisons):
        rows = "\n".join(f"  {comparison}" for comparison in comparisons)
        raise ExportError(
            f"the exported file differs from the model by more than {tolerance:g}, and is not kept:\n{rows}"
        )
