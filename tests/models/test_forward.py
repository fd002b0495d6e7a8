"""The forward of a whole model fits on one screen."""

import ast
import inspect
import textwrap

import pytest

from deformdetr import DETR, DeformableDETR


@pytest.mark.parametrize(("model", "most"), [(DeformableDETR, 15), (DETR, 13)])
def test_forward_has_few_statements_and_branches(model, most):
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(model.forward)))
    nodes = list(ast.walk(ast.parse(source).body[0]))
    # The function itself and its docstring are statements too.
    assert sum(isinstance(node, ast.stmt) for node in nodes) - 2 <= most
    assert sum(isinstance(node, ast.If | ast.IfExp | ast.For | ast.comprehension) for node in nodes) <= 4
