"""ONNX files, compared with their model before they are kept."""

import copy
import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from deformdetr._files import check_writable, replacing
from deformdetr.integrations._export._check import Comparison, check_batches, compare
from deformdetr.integrations._export._program import AnyPostProcess, ExportError, export_program, output_names
from deformdetr.integrations._export._run import load
from deformdetr.integrations._export._sampling import Sampling, decompositions
from deformdetr.integrations._export._tensorrt import Plugin, plugin_decompositions

OnnxSampling: TypeAlias = Literal[Sampling, Plugin]

_EXTRA = ("onnx", "onnxruntime", "onnxscript")
# PyTorch writes this version. onnxscript converts it to newer ones, `_write_as_opset_17` to the one before.
_WRITTEN_OPSET = 18
_OLDEST_OPSET = _WRITTEN_OPSET - 1


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The file that was written, and its differences from the model.

    Attributes:
        path: The file.
        opset: Version of ONNX's operators.
        sampling: How deformable attention is computed.
        nodes: Number of nodes of the graph.
        tolerance: Largest difference allowed.
        comparisons: One per batch.

    Examples:
        >>> settings = {"opset": 18, "sampling": "gather", "nodes": 9, "tolerance": 1e-3}
        >>> print(ExportReport(path=Path("detector.onnx"), comparisons=(), **settings))
        detector.onnx: opset 18, gather, 9 nodes
    """

    path: Path
    opset: int
    sampling: OnnxSampling
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
    sampling: OnnxSampling = "grid_sample",
    opset: int = _WRITTEN_OPSET,
    postprocess: AnyPostProcess | None = None,
    images: Sequence[Float[Tensor, "3 _ _"]] | None = None,
    tolerance: float = 1e-3,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a detector as an ONNX file for any batch, height and width, and compare it with the model.

    Inputs and outputs are those of `export_program`. The file is in float32 and has no custom operators, unless it is
    for TensorRT's plugin. It is written under a temporary name, run on several batches, and renamed only if no
    difference exceeds `tolerance`. onnxruntime runs it, or ONNX's reference evaluator if it has the plugin's nodes.

    Args:
        model: A module that returns `Predictions` for images and padding mask; it is not changed.
        path: File with suffix `.onnx`.
        sampling: How to compute deformable attention: `grid_sample` samples level by level, `gather` reads the four
            pixels around all samples. `tensorrt_v1` and `tensorrt_v2` leave it to TensorRT's plugin
            `MultiscaleDeformableAttnPlugin_TRT`: version 1 needs TensorRT 8.4.1 or newer, version 2 needs 10.11.
        opset: Version of ONNX's operators, 17 or newer.
        postprocess: Post-processing to include.
        images: Normalized images of any sizes for the comparison; None uses noise.
        tolerance: Largest difference of logits, masks, and boxes as fractions of the image.
        metadata: Properties to write into the file.
        overwrite: Whether to replace an existing file.

    Raises:
        ModuleNotFoundError: If a package of the extra `onnx` is not installed.
        ExportError: If the model cannot be exported, or the file computes something else; no file is written then.
        FileExistsError: If the file exists and `overwrite` is not set.
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written; an existing file is kept then.
        ValueError: If the suffix, the sampling or the opset is wrong, or `images` is empty.

    Examples:
        >>> from deformdetr import preset
        >>> report = export_onnx(preset("demo").build(), "detector.onnx")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    path = Path(path)
    _require_extra()
    check_writable(path, suffixes=[".onnx"], overwrite=overwrite)
    if sampling not in get_args(OnnxSampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(OnnxSampling))}; got {sampling!r}")
    if opset < _OLDEST_OPSET:
        raise ValueError(f"opset must be {_OLDEST_OPSET} or newer, got {opset}")
    if images is not None and not images:
        raise ValueError("images must hold at least one image to compare on, got none")
    batches = check_batches(_noise() if images is None else [image.float().cpu() for image in images])

    model = copy.deepcopy(model).float().cpu().eval()
    content = _translate(model, postprocess, sampling, opset, metadata or {})
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.SerializeToString())
        run = load(unfinished)
        comparisons = tuple(compare(model, run, batch, postprocess=postprocess) for batch in batches)
        _check_tolerance(comparisons, tolerance)
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


def _noise() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in ((256, 320), (320, 224))]


def _translate(
    model: nn.Module,
    postprocess: AnyPostProcess | None,
    sampling: OnnxSampling,
    opset: int,
    metadata: Mapping[str, str],
) -> Any:
    """Return the model as ONNX's `ModelProto`."""
    import onnx

    table = {**_replacements(sampling), torch.ops.aten.upsample_nearest2d.vec: _resize_to_nearest}
    program = export_program(model, postprocess=postprocess).run_decompositions(table)
    inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    outputs = output_names(program, postprocess)
    newer = max(opset, _WRITTEN_OPSET)
    with _silenced():
        try:
            # `ONNXProgram`, typed as None if it writes a file.
            translated: Any = torch.onnx.export(
                program, input_names=inputs, output_names=outputs, opset_version=newer, dynamo=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the model has no form in ONNX: {error}") from error
    content = translated.model_proto
    (version,) = (each for each in content.opset_import if not each.domain)
    if version.version != newer:
        raise ExportError(f"the installed onnxscript cannot write opset {opset}, which is newer")
    if opset < newer:
        _write_as_opset_17(content.graph)
        version.version = opset
    _name_axes(content)
    _remove_stack_traces(content.graph)
    onnx.helper.set_model_props(content, dict(metadata))
    return content


def _replacements(sampling: OnnxSampling) -> dict[Any, Callable[..., Tensor]]:
    """Return the replacement of the operator."""
    match sampling:
        case "tensorrt_v1" | "tensorrt_v2":
            return plugin_decompositions(sampling)
        case _:
            return decompositions(sampling)


def _write_as_opset_17(graph: Any) -> None:
    """Convert opset 18 to 17: axes of reductions become attributes, and splits lose the number of parts.

    Raises:
        ExportError: If the graph has other operators of version 18, or computed axes.
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
    """Resize with PyTorch's rounding: it multiplies by the inverse scale, by which ONNX's `Resize` divides.

    The difference can move the end of a padding mask by one pixel of the feature map.
    """
    rows, columns = (_nearest(given, wanted, image) for given, wanted in zip(image.shape[2:], size, strict=True))
    return image[:, :, rows[:, None], columns]


def _nearest(given: Any, wanted: Any, like: Tensor) -> Tensor:
    sides = [torch.full((), side, dtype=torch.float32, device=like.device) for side in (given, wanted)]
    places = torch.arange(wanted, dtype=torch.float32, device=like.device) * (sides[0] / sides[1])
    return torch.minimum(places, sides[0] - 1).long()


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence warnings and logs of the exporter and its optimizer."""
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
    """Name the axes of inputs and outputs, in place of the tracer's symbols and formulas."""
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


def _remove_stack_traces(graph: Any) -> None:
    """Remove the source lines that made each node: they name the author's folders, and can fill half of the file."""
    for node in graph.node:
        kept = [each for each in node.metadata_props if each.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _check_tolerance(comparisons: Sequence[Comparison], tolerance: float) -> None:
    """Check that all differences are within the tolerance.

    Raises:
        ExportError: If a difference exceeds the tolerance.
    """
    if not all(comparison.is_within(tolerance) for comparison in comparisons):
        rows = "\n".join(f"  {comparison}" for comparison in comparisons)
        raise ExportError(
            f"the exported file differs from the model by more than {tolerance:g}, and is not kept:\n{rows}"
        )
