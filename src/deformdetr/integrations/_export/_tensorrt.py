"""Deformable attention as a node for TensorRT's plugin, and the same node without TensorRT."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from deformdetr.integrations._export._sampling import decompose_by
from deformdetr.kernels import _reference
from deformdetr.kernels._levels import Level, level_columns

# Versions of the plugin: 1 since TensorRT 8.4.1, deprecated in 10.11, and 2 since 10.11.
Plugin: TypeAlias = Literal["tensorrt_v1", "tensorrt_v2"]
_VERSIONS: dict[Plugin, str] = {"tensorrt_v1": "1", "tensorrt_v2": "2"}

OPERATOR = "MultiscaleDeformableAttnPlugin_TRT"
# TensorRT's parser finds plugins by the name of the operator, onnxruntime's TensorRT provider by this domain too.
DOMAIN = "trt.plugins"


def plugin_decompositions(plugin: Plugin) -> dict[Any, Callable[..., Tensor]]:
    """Return the replacement of the operator by a node for the plugin, for `ExportedProgram.run_decompositions`."""
    return decompose_by(partial(_place_node, _VERSIONS[plugin]))


def _place_node(version: str, value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor) -> Tensor:
    height, width, start = level_columns(levels, value.device)
    node = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}",
        (value, torch.cat([height, width], dim=1).int(), start[:, 0].int(), locations, weights),
        {"plugin_version": version, "plugin_namespace": ""},
        dtype=value.dtype,
        shape=(*weights.shape[:3], value.shape[3]),
        version=1,
    )
    return node.flatten(2)


def evaluate(content: Any) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """Return a function that runs a model with the plugin's nodes by ONNX's reference evaluator, on NumPy arrays."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    # The evaluator finds operators by the name of the class. Its own `GatherElements` takes at most 64 rows.
    plugin = type(OPERATOR, (OpRun,), {"op_domain": DOMAIN, "_run": _run_node})
    gather = type("GatherElements", (OpRun,), {"op_domain": "", "_run": _gather_elements})
    evaluator = ReferenceEvaluator(content, new_ops=[plugin, gather])

    def run(inputs: Mapping[str, Any]) -> Sequence[Any]:
        # Logarithms of coordinates outside of the image are NaN, of which NumPy warns and PyTorch does not.
        with np.errstate(all="ignore"):
            return list(evaluator.run(None, dict(inputs)))

    return run


def _run_node(
    node: Any, value: Any, spatial_shapes: Any, level_start_index: Any, locations: Any, weights: Any, **attributes: str
) -> tuple[Any]:
    """Compute what the plugin does, which takes the first pixel of every level from `level_start_index`."""
    sizes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    levels = [Level(height, width, start) for (height, width), start in zip(sizes, starts, strict=True)]
    features, *sampling = map(torch.from_numpy, (value, locations, weights))
    out = _reference.forward(features, levels, *sampling)
    return (out.numpy().reshape(*out.shape[:2], *value.shape[2:]),)


def _gather_elements(node: Any, data: Any, indices: Any, *, axis: int) -> tuple[Any]:
    return (np.take_along_axis(data, indices, axis),)
