"""Detectors as files for other programs: exported programs of PyTorch and ONNX, for images of any size and number.

An exported program keeps deformable attention as one operator, which needs this library where it runs. `decompositions`
turns it into PyTorch's own operators; ONNX files never contain it. They need the extra `onnx`.
"""

from deformdetr.integrations._export_check import Comparison
from deformdetr.integrations._export_onnx import ExportReport, export_onnx
from deformdetr.integrations._export_program import ExportError, export_program
from deformdetr.integrations._export_sampling import Sampling, decompositions

__all__ = [
    "Comparison",
    "ExportError",
    "ExportReport",
    "Sampling",
    "decompositions",
    "export_onnx",
    "export_program",
]
