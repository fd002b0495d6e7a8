"""Layers ask for no device and no compiler: kernels do."""

import ast
from pathlib import Path

import pytest

NN = Path(__file__).parents[2] / "src" / "deformdetr" / "nn"
QUESTIONS = {
    "get_cpu_capability", "get_num_threads", "has_dispatch_modes", "is_compiling", "is_cpu", "is_cuda", "is_exporting",
    "is_tracing", "is_transformed", "mkldnn", "multiply_by_onednn",
}  # fmt: skip


def questions(tree: ast.AST) -> list[str]:
    """Return the names that ask for a device or a compiler, and the comparisons of device types."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name) if name in QUESTIONS:
                found.append(name)
            case ast.Compare():
                found += [
                    ast.unparse(part)
                    for part in ast.walk(node)
                    if isinstance(part, ast.Attribute) and ast.unparse(part).endswith(".device.type")
                ]
    return found


@pytest.mark.parametrize("file", sorted(NN.glob("*.py")), ids=lambda file: file.name)
def test_layers_ask_for_no_device_and_no_compiler(file):
    assert questions(ast.parse(file.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "if x.device.type == 'cpu': pass",
        "y = x if torch.compiler.is_compiling() else z",
        "from deformdetr._tracing import is_tracing",
        "torch.backends.mkldnn.enabled",
        "x.is_cuda",
    ],
)
def test_questions_are_found(code):
    assert questions(ast.parse(code))
