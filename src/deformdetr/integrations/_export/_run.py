"""Running exported files for their check: by onnxruntime, or by ONNX's reference evaluator."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deformdetr import _compat
from deformdetr.integrations._export import _tensorrt
from deformdetr.integrations._export._check import FileOutputs, Run
from deformdetr.integrations._export._program import ExportError

# Computes the outputs of a graph, in order, from its inputs by name, all of them NumPy arrays.
_Session: TypeAlias = Callable[[Mapping[str, Any]], Sequence[Any]]


def load(path: Path) -> Run:
    """Return a function that runs a file: by onnxruntime unless it has nodes for TensorRT's plugin.

    Raises:
        ExportError: If onnxruntime cannot load the file.
    """
    import onnx

    content = onnx.load(path)
    names = [output.name for output in content.graph.output]
    choices = [node.output[1] for node in content.graph.node if node.op_type == "TopK"]
    content.graph.output.extend(onnx.ValueInfoProto(name=name) for name in choices)
    has_plugin = any(node.domain == _tensorrt.DOMAIN for node in content.graph.node)
    session = _tensorrt.evaluate(content) if has_plugin else _open_by_onnxruntime(content)

    def run(inputs: Mapping[str, Tensor]) -> FileOutputs:
        tensors = [torch.from_numpy(array) for array in session({name: each.numpy() for name, each in inputs.items()})]
        return FileOutputs(dict(zip(names, tensors, strict=False)), tensors[len(names) :])

    return run


def _open_by_onnxruntime(content: Any) -> _Session:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    failures = _compat.onnxruntime_failures()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors only.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise ExportError(f"onnxruntime cannot load what was exported: {error}") from error

    def run(inputs: Mapping[str, Any]) -> Sequence[Any]:
        try:
            outputs: Sequence[Any] = session.run(None, dict(inputs))
        except failures as error:
            sizes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise ExportError(f"onnxruntime cannot run what was exported on {sizes}: {error}") from error
        return outputs

    return run
