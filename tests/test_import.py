"""What `import deformdetr` costs, loads and offers."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import deformdetr

HEAVY = ("llvmlite", "matplotlib", "numba", "pycocotools", "torchvision", "triton")
# What PyTorch itself loads for compilers, and without them not.
COMPILERS = ("sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes")
OPTIONAL = ("accelerate", "huggingface_hub", "rich", "safetensors", "transformers", "yaml")

MEASURE = """
import json, sys, time
import torch
before = set(sys.modules)
started = time.process_time()
import deformdetr
seconds = time.process_time() - started
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "loaded": sorted(loaded)}))
"""

# What most programs begin with, one after the other in one process.
USES = ("boxes", "MSDeformAttn", "HungarianMatcher", "SetCriterion", "DeformableDETRConfig", "load_checkpoint")
USE_WITHOUT_THE_ARGUMENTS = """
import json, sys
sys.modules.update(dict.fromkeys(sys.argv[2:]))
import deformdetr
loaded = {}
for name in sys.argv[1].split():
    getattr(deformdetr, name)
    loaded[name] = [module for module in sys.modules if sys.modules[module] is not None]
from deformdetr import *
assert set(deformdetr.__all__) <= set(globals())
print(json.dumps(loaded))
"""

# A module that is `None` in `sys.modules` raises ImportError, as does a torchvision built for another torch.
IMPORT_CORE_WITHOUT_THE_ARGUMENTS = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
from deformdetr import boxes, kernels, losses, matching, nn, structures
"""


def _python(code: str, *arguments: str) -> str:
    process = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    if process.returncode:
        pytest.fail(process.stderr)
    return process.stdout


def _measure() -> dict[str, Any]:
    return json.loads(_python(MEASURE))


def test_import_loads_no_heavy_package_that_torch_does_not_load():
    loaded = _measure()["loaded"]
    assert "deformdetr" in loaded
    assert not set(HEAVY) & set(loaded)


def test_import_takes_at_most_a_fifth_of_a_second_more_than_torch():
    # Processor time, and the least of a few runs: other work on the machine slows an import, and nothing speeds it up.
    seconds = [_measure()["seconds"]]
    while min(seconds) > 0.2 and len(seconds) < 5:
        seconds.append(_measure()["seconds"])
    assert min(seconds) <= 0.2


def test_names_need_no_optional_package_and_load_no_heavy_one():
    loaded = json.loads(_python(USE_WITHOUT_THE_ARGUMENTS, " ".join(USES), *OPTIONAL))
    heavy = {*HEAVY, *COMPILERS}
    assert {name: sorted(heavy & set(modules)) for name, modules in loaded.items()} == {name: [] for name in USES}


def test_core_imports_without_the_packages_it_does_not_need():
    _python(IMPORT_CORE_WITHOUT_THE_ARGUMENTS, *HEAVY, *OPTIONAL)


def test_version_is_that_of_the_installed_distribution():
    assert deformdetr.__version__ == importlib.metadata.version("deformdetr")


def _public_modules() -> list[str]:
    found = pkgutil.walk_packages(deformdetr.__path__, "deformdetr.")
    return ["deformdetr", *(module.name for module in found if "._" not in module.name)]


@pytest.mark.parametrize("name", _public_modules())
def test_public_module_exports_documented_names(name):
    package = importlib.import_module(name)
    assert package.__doc__
    assert len(package.__all__) == len(set(package.__all__))
    for attribute in package.__all__:
        value = getattr(package, attribute)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{attribute} has no docstring"


LAZY = [deformdetr, deformdetr.integrations]


def _submodules(package: ModuleType) -> set[str]:
    return {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_exported_names_and_submodules_are_all_that_is_listed(package):
    listed = {name for name in dir(package) if not name.startswith("__")}
    assert listed == {*package.__all__, *_submodules(package)}


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_submodules_are_attributes(package):
    for name in _submodules(package):
        assert getattr(package, name) is importlib.import_module(f"{package.__name__}.{name}")


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_type_checkers_read_the_submodules_and_names_that_are_offered(package):
    (guarded,) = [
        node
        for node in ast.parse(Path(package.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    read = {alias.name: node.module for node in imports for alias in node.names}
    submodules = dict.fromkeys(_submodules(package), package.__name__)
    names = set(read) - set(submodules)
    assert read == submodules | {name: read[name] for name in names}
    for name in names:
        assert name in importlib.import_module(read[name]).__all__
        assert getattr(package, name) is getattr(importlib.import_module(read[name]), name)
    # What is not read there is imported outside of it.
    assert names == {name for name in package.__all__ if name not in vars(package)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_name", r"'no_such_name'; dir\(deformdetr\) lists all names"),
        ("hungarian_matcher", r"did you mean HungarianMatcher\?"),
        ("box_cxcywh_to_xyxy", r"did you mean cxcywh_to_xyxy\?"),
        ("DeformableDetr", r"did you mean DeformableDETR\b"),
        ("loses", r"did you mean losses\?"),
    ],
)
def test_unknown_name_is_refused_with_those_that_are_near(name, message):
    with pytest.raises(AttributeError, match=f"module 'deformdetr' has no attribute '{name}'.*"):
        getattr(deformdetr, name)
    with pytest.raises(AttributeError, match=message):
        getattr(deformdetr, name)


def test_unknown_name_of_the_integrations_is_refused():
    with pytest.raises(AttributeError, match=r"'deformdetr\.integrations' has no attribute 'mmdetection'"):
        deformdetr.integrations.mmdetection  # noqa: B018 - reading it is the test.
