"""What `import deformdetr` costs, loads and offers."""

import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import deformdetr

HEAVY = ("llvmlite", "matplotlib", "numba", "pycocotools", "torchvision", "triton")
OPTIONAL = ("accelerate", "huggingface_hub", "rich", "safetensors", "transformers", "yaml")

MEASURE = """
import json, sys, time
import torch
before = set(sys.modules)
started = time.perf_counter()
import deformdetr
seconds = time.perf_counter() - started
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "loaded": sorted(loaded)}))
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
    # The least of a few: whatever else the machine does makes an import slower, and nothing makes it faster.
    seconds = [_measure()["seconds"]]
    while min(seconds) > 0.2 and len(seconds) < 5:
        seconds.append(_measure()["seconds"])
    assert min(seconds) <= 0.2


def test_core_imports_without_the_packages_it_does_not_need():
    _python(IMPORT_CORE_WITHOUT_THE_ARGUMENTS, *HEAVY, *OPTIONAL)


def test_version_is_that_of_the_installed_distribution():
    assert deformdetr.__version__ == importlib.metadata.version("deformdetr")


def _public_packages() -> list[str]:
    found = pkgutil.walk_packages(deformdetr.__path__, "deformdetr.")
    return ["deformdetr", *(module.name for module in found if module.ispkg and "._" not in module.name)]


@pytest.mark.parametrize("name", _public_packages())
def test_public_package_exports_documented_names(name):
    package = importlib.import_module(name)
    assert package.__doc__
    assert len(package.__all__) == len(set(package.__all__))
    for attribute in package.__all__:
        value = getattr(package, attribute)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{attribute} has no docstring"


def test_exported_names_are_listed():
    assert set(deformdetr.__all__) <= set(dir(deformdetr))


def test_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="no_such_name"):
        deformdetr.no_such_name  # noqa: B018 - reading it is the test.
