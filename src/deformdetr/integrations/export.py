"""Export of detectors, for any batch, height and width, as PyTorch's exported programs and as ONNX files.

An exported program contains deformable attention as one operator, which needs this library at run time.
`decompositions` replaces it by PyTorch's own operators. ONNX files never contain it: they have standard operators, or
the node of TensorRT's plugin. They need the extra `onnx`.
"""

from deformdetr.integrations._export._check import Comparison
from deformdetr.integrations._export._onnx import ExportReport, OnnxSampling, export_onnx
from deformdetr.integrations._export._program import ExportError, export_program
from deformdetr.integrations._export._sampling import Sampling, decompositions

__all__ = [
    "Comparison",
    "ExportError",
    "ExportReport",
    "OnnxSampling",
    "Sampling",
    "decompositions",
    "export_onnx",
    "export_program",
]
