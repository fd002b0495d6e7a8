"""Checking of annotated shapes, fresh and reproducible random numbers, and what this machine cannot run."""

import os
import random
import sys
import zlib
from collections.abc import Generator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

SOURCES = Path(__file__).parents[1] / "src"
CHECKED = os.environ.get("JAXTYPING_DISABLE", "0").lower() not in {"1", "true"}
# Modules of `kernels._triton` and `kernels._numba`.
COMPILED = ("_backward", "_cache", "_forward", "_kernels", "_parts", "_vectors")
SEED = pytest.StashKey[int]()


def _checkable_modules() -> list[str]:
    """Name every module but those that break when their functions are wrapped.

    Packages stay out because the hook would take all that lies below them; their `__init__` holds imports alone.
    Triton and Numba compile the source of their kernels, and pydantic checks its own models (package `config`, modules
    `_config`).
    """
    files = (path.relative_to(SOURCES).with_suffix("") for path in SOURCES.rglob("*.py"))
    unchecked = {"__init__", "__main__", "_config", *COMPILED}
    return sorted(".".join(file.parts) for file in files if file.name not in unchecked and "config" not in file.parts)


# What pytest has loaded by the library's entry point, where it is installed.
LOADED_BY_PYTEST = {"deformdetr", "deformdetr._pytest_plugin"}

# Before anything else imports the library: modules that are loaded already stay unchecked.
if early := sorted(name for name in {*sys.modules} - LOADED_BY_PYTEST if name.partition(".")[0] == "deformdetr"):
    raise pytest.UsageError(f"imported before their shapes could be checked: {', '.join(early)}")
if CHECKED:
    install_import_hook(_checkable_modules(), "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="Number that all random input follows from; a failed test reports it.")
    parser.addoption("--examples", type=int, help="How many calls each test of random calls draws; without it, few.")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--seed")
    config.stash[SEED] = random.SystemRandom().randrange(2**32) if given is None else given
    # Drawing is not timed, since the first call compiles a kernel.
    few = 10 if os.environ.get("TRITON_INTERPRET") == "1" else 200
    hypothesis.settings.register_profile("here", max_examples=config.getoption("--examples") or few, deadline=None)
    hypothesis.settings.load_profile("here")


def pytest_report_header(config: pytest.Config) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    shapes = "checked" if CHECKED else "not checked"
    return f"torch: {torch.__version__} on {device}; shapes: {shapes}; --seed={config.stash[SEED]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here.

    GPU tests without a GPU, compiler tests where shapes are checked, and those of Triton's interpreter without it.
    """
    _check_that_make_finds_them(items)
    absent = {"gpu"} if not torch.cuda.is_available() else set()
    absent |= {"compile", "unchecked"} if CHECKED else set()
    absent |= {"interpreter"} if os.environ.get("TRITON_INTERPRET") != "1" else set()
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in absent)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _check_that_make_finds_them(items: list[pytest.Item]) -> None:
    """Check that each file writes out the markers of its tests, because `make` looks for these texts."""
    markers = {(item.path, mark.name) for item in items for mark in item.iter_markers()}
    for path, name in sorted(markers):
        if name in {"compile", "interpreter", "slow", "unchecked"} and f"mark.{name}" not in path.read_text(
            encoding="utf-8"
        ):
            raise pytest.UsageError(f"{path}: `make` does not find its tests, since it has no text mark.{name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say how to repeat a failure with the same numbers."""
    report = yield
    if report.failed:
        report.sections.append(("Random numbers", f"the same ones again: --seed={item.config.stash[SEED]}"))
    return report


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return this test's own number, which follows from `--seed` and the test's name alone."""
    return zlib.crc32(f"{request.config.stash[SEED]} {request.node.nodeid}".encode())


@pytest.fixture(autouse=True)
def _seed_global_generators(seed: int) -> None:
    """Seed what takes no generator, such as the initialization of modules."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - pycocotools and torchvision may draw from it.
    torch.manual_seed(seed)


@pytest.fixture
def rng(seed: int) -> torch.Generator:
    """Return a generator on the CPU with this test's seed."""
    return torch.Generator().manual_seed(seed)
