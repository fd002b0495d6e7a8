"""The pytest plugin: options that name an implementation, and a test for each case and dtype."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from deformdetr.testing import CASES, check_ms_deform_attn
from deformdetr.testing._tolerances import TOLERANCES

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}


@dataclass(frozen=True)
class Given:
    """What the options say."""

    function: Callable[..., Any]
    device: str
    seed: int | None
    same_dtype: bool

    def check(self, case: str, dtype: torch.dtype) -> None:
        """Check one case in one dtype.

        Raises:
            ConformanceError: If it does not pass.
        """
        report = check_ms_deform_attn(
            self.function,
            device=self.device,
            dtypes=[dtype],
            cases=[case],
            locations_dtype=dtype if self.same_dtype else None,
            seed=self.seed,
        )
        report.raise_for_failures()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("deformdetr", "conformance of multi-scale deformable attention")
    group.addoption("--implementation", metavar="MODULE:FUNCTION", help="The function to check.")
    group.addoption("--implementation-device", default="cpu", metavar="DEVICE", help="Where it runs (default: cpu).")
    group.addoption(
        "--implementation-dtypes",
        default="float32,bfloat16,float16",
        metavar="DTYPES",
        help="Dtypes of value and weights, separated by commas (default: float32,bfloat16,float16).",
    )
    group.addoption(
        "--implementation-same-dtype",
        action="store_true",
        help="Pass locations in the dtype of the value, in place of float32.",
    )
    group.addoption("--implementation-seed", type=int, metavar="SEED", help="Number that all inputs follow from.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each case and dtype.

    Raises:
        UsageError: If there is no implementation, or an option does not name what there is.
    """
    if {"implementation", "case", "dtype"} <= set(metafunc.fixturenames):
        _read_options(metafunc.config)
        names = metafunc.config.getoption("implementation_dtypes").split(",")
        if unknown := [name for name in names if name not in _DTYPES]:
            raise pytest.UsageError(f"--implementation-dtypes must be among {', '.join(_DTYPES)}, got {unknown}")
        metafunc.parametrize("case", list(CASES))
        metafunc.parametrize("dtype", [_DTYPES[name] for name in names], ids=names)


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Given:
    """Return what the options name."""
    return _read_options(request.config)


def _read_options(config: pytest.Config) -> Given:
    name = config.getoption("implementation")
    if not name:
        raise pytest.UsageError("--implementation MODULE:FUNCTION has to name the function to check")
    module, _, path = name.partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in filter(None, path.split(".")):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--implementation {name}: {error}") from error
    if not callable(function):
        raise pytest.UsageError(f"--implementation {name} is no function, but {type(function).__name__}")
    options = ("implementation_device", "implementation_seed", "implementation_same_dtype")
    return Given(function, *map(config.getoption, options))
