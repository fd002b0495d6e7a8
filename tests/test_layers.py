"""What the core may import, package by package: the import contracts name what it may not."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
CORE = ("_dtypes", "_files", "_grids", "boxes", "kernels", "losses", "matching", "nn", "structures", "testing")
# Beyond the standard library, torch, jaxtyping and the library itself; the path is that of one file or folder.
ALLOWED = {
    "deformdetr/_files/_download.py": {"tqdm"},
    "deformdetr/_files/_hub.py": {"huggingface_hub"},
    "deformdetr/_files/_settings.py": {"yaml"},
    "deformdetr/_files/_tensors.py": {"safetensors"},
    "deformdetr/kernels/_numba": {"llvmlite", "numba", "numpy"},
    "deformdetr/kernels/_triton": {"triton"},
    "deformdetr/matching": {"scipy"},
    "deformdetr/nn/_deform_conv.py": {"torchvision"},
    "deformdetr/nn/_resnet_backbone.py": {"torchvision"},
    "deformdetr/testing/_plugin.py": {"pytest"},
}


def _core_files() -> list[Path]:
    roots = [SOURCES / "deformdetr" / name for name in CORE]
    files = [*(root.with_suffix(".py") for root in roots), *(file for root in roots for file in root.rglob("*.py"))]
    return sorted(file.relative_to(SOURCES) for file in files if file.exists())


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("file", _core_files(), ids=str)
def test_core_module_imports_torch_and_little_else(file):
    extra = set().union(*(names for path, names in ALLOWED.items() if file.is_relative_to(path)))
    imported = set(_imported(ast.parse((SOURCES / file).read_text())))
    assert imported - sys.stdlib_module_names <= {"deformdetr", "jaxtyping", "torch"} | extra


@pytest.mark.parametrize("file", _core_files(), ids=str)
def test_core_module_imports_torchvision_only_inside_a_function(file):
    tree = ast.parse((SOURCES / file).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = [name for function in functions for name in _imported(function)]
    assert list(_imported(tree)).count("torchvision") <= inside.count("torchvision")
