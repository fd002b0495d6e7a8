"""Run the fast tests with the oldest and the newest releases of the packages that the library needs.

`python -m tools.compat` makes two temporary environments for every Python that `pyproject.toml` names: one with
the oldest allowed release of every required package and of Numba, and one with the newest. Packages of the extras are
the newest that fit. It runs `make test` in each, without a GPU, and writes `benchmarks/results/compat.json` and the
table of `docs/installation.md`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.environment import ROOT, describe_environment, today
from benchmarks.pages import DOCS, Parts, markdown

STORED = "compat.json"
PROJECT = ROOT / "pyproject.toml"

RELEASES = ("oldest", "newest")
COLUMNS = {
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "triton": "Triton",
    "numpy": "NumPy",
    "numba": "Numba",
    "transformers": "transformers",
}

# Tests that fail with the oldest releases, by reason.
EXCLUDED = {
    "Triton 3.4 makes other machine code for GPUs of NVIDIA, and needs ROCm's linker for those of AMD": (
        "tests/kernels/test_machine_code.py::test_backward_adds_vectors_and_waits_for_none_of_them",
        "tests/kernels/test_machine_code.py::test_kernels_for_amd_do_not_spill",
    ),
    "the compiler of PyTorch 2.8 traces neither transformers' check of D-FINE's inputs nor `torch.vmap` of modules": (
        "tests/integrations/test_transformers.py::test_accelerated_layers_compile_into_one_graph[d_fine]",
        "tests/kernels/test_linear.py::test_compiled_transforms_see_pytorchs_operators",
    ),
    "transformers that goes with them has no PP-DocLayoutV4": (
        "tests/integrations/test_transformers.py::test_model_gives_the_same_outputs_and_gradients[pp_doclayout_v4]",
    ),
}
# These test the stored results, which the run replaces.
_OWN_TESTS = "tests/tools/test_compat.py"

_START = re.compile(r"=+ test session starts =+")
_END = re.compile(r"=+ (.*) in [\d.]+s(?: \([\d:]+\))? =+")
_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")
_FAILURE = re.compile(r"(?:FAILED|ERROR) (\S+)")

_PRINT_VERSIONS = """
import importlib.metadata, json, platform, sys
versions = {name: importlib.metadata.version(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version()} | versions))
"""


def pythons() -> list[str]:
    """Return the releases of Python that the package declares."""
    prefix = "Programming Language :: Python :: 3."
    return [name.rpartition(" ")[2] for name in _project()["classifiers"] if name.startswith(prefix)]


def floors() -> dict[str, str]:
    """Return the oldest declared release of every required package and of Numba, or an empty string."""
    requirements = [*_project()["dependencies"], *_project()["optional-dependencies"]["cpu"]]
    declared = (re.match(r"([\w-]+)(?:>=([\d.]+))?", requirement) for requirement in requirements)
    return {match[1]: match[2] or "" for match in declared if match}


def measure(python: str, releases: str, directory: Path) -> dict[str, Any]:
    """Run the tests in a new environment in a directory, and remove the environment."""
    venv = directory / f"python{python}-{releases}"
    source = describe_environment()
    try:
        _install(venv, python, releases)
        versions = subprocess.run(
            [_executable(venv), "-c", _PRINT_VERSIONS, *COLUMNS], check=True, capture_output=True, text=True
        ).stdout
        started = time.monotonic()
        excluded = EXCLUDED if releases == "oldest" else {}
        outcome = read_outcome(_test(venv, [test for tests in excluded.values() for test in tests]))
        seconds = time.monotonic() - started
    finally:
        shutil.rmtree(venv, ignore_errors=True)
    return {
        "releases": releases,
        "versions": json.loads(versions),
        **outcome,
        "excluded": excluded,
        "seconds": round(seconds),
        "commit": source["commit"],
        "dirty": source["dirty"],
        "date": today(),
    }


def read_outcome(lines: Sequence[str]) -> dict[str, Any]:
    """Add up the counts that the sessions of pytest print, and collect the names of the tests that failed.

    Raises:
        RuntimeError: If no session started, or one did not finish.
    """
    started = sum(1 for line in lines if _START.fullmatch(line))
    ends = [match[1] for line in lines if (match := _END.fullmatch(line))]
    if not started or len(ends) != started:
        raise RuntimeError(f"{started} sessions of pytest started, and {len(ends)} came to an end")
    counts = Counter[str]()
    for end in ends:
        counts.update({word: int(number) for number, word in _COUNT.findall(end)})
    failures = [match[1] for line in lines if (match := _FAILURE.match(line))]
    return {
        "passed": counts["passed"],
        "failed": counts["failed"] + counts["error"],
        "skipped": counts["skipped"],
        "failures": failures,
    }


def load() -> list[dict[str, Any]]:
    """Read the stored rows; none before the first run."""
    return pages.read(STORED)["rows"] if (pages.RESULTS / STORED).exists() else []


def merge(rows: Iterable[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Replace the row of the same Python and releases, and sort the rows as on the page."""

    def key(row: dict[str, Any]) -> tuple[int, list[int]]:
        # Without the patch release of Python.
        return RELEASES.index(row["releases"]), [int(part) for part in row["versions"]["python"].split(".")[:2]]

    return sorted([*(other for other in rows if key(other) != key(row)), row], key=key)


def parts() -> Parts:
    """Return the table of the page."""
    rows = load()
    return {(DOCS / "installation.md", "compat"): table(rows) if rows else "Not tested yet."}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the versions, the counts, the failures and the excluded tests."""
    heads = ["releases", "Python", *COLUMNS.values(), "passed", "failed", "skipped"]
    cells = (
        [row["releases"]]
        + [row["versions"][name] for name in ("python", *COLUMNS)]
        + [str(row[count]) for count in ("passed", "failed", "skipped")]
        for row in rows
    )
    sources = sorted({f"{row['commit']}{' with uncommitted changes' if row['dirty'] else ''}" for row in rows})
    failures = [
        f"Failed with Python {row['versions']['python']} and the {row['releases']} releases: {_list(row['failures'])}."
        for row in rows
        if row["failures"]
    ]
    excluded = {reason: tests for row in rows for reason, tests in row["excluded"].items()}
    left_out = [f"Left out with the oldest releases ({reason}): {_list(tests)}." for reason, tests in excluded.items()]
    note = (
        "The fast tests without a GPU, by `make compat`, which writes `benchmarks/results/compat.json`; "
        f"{max(row['date'] for row in rows)}, commit {', '.join(sources)}. Tests are skipped where the checkout has no "
        "photographs."
    )
    return "\n\n".join([markdown(heads, cells, left=len(COLUMNS) + 2), *failures, *left_out, note])


def _list(tests: Iterable[str]) -> str:
    return ", ".join(f"`{test}`" for test in tests)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, and return the exit status: 1 if any test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", choices=pythons(), action="append", help="only this one; repeatable")
    parser.add_argument("--releases", choices=RELEASES, action="append", help="only the oldest, or only the newest")
    parser.add_argument("--directory", type=Path, help="parent of the environments (default: the temporary directory)")
    options = parser.parse_args(arguments)
    rows = load()
    chosen = [(python, releases) for releases in options.releases or RELEASES for python in options.python or pythons()]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="deformdetr-", dir=options.directory) as directory:
        for python, releases in chosen:
            print(f"== Python {python} with the {releases} releases", flush=True)
            row = measure(python, releases, Path(directory))
            failed += row["failed"]
            rows = merge(rows, row)
            pages.store(STORED, {"command": "make compat", "rows": rows})
    pages.write(parts())
    return 1 if failed else 0


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return project


def _install(venv: Path, python: str, releases: str) -> None:
    # With setuptools, which old releases of Triton need without declaring it.
    _uv(venv, "venv", "--seed", "--python", python, str(venv))
    # A release that would have to be compiled does not support this Python.
    options = ["--python", str(_executable(venv)), "--only-binary=:all:"]
    constraints = venv / "constraints.txt"
    if releases == "oldest":
        pins = _uv(
            venv, "pip", "compile", "--quiet", "--resolution=lowest-direct", "--extra=cpu", PROJECT.name, *options
        )
        constraints.write_text("\n".join(pin for pin in pins.splitlines() if pin.partition("==")[0] in floors()))
        options += ["--constraints", str(constraints)]
    _uv(venv, "pip", "install", *options, "--no-binary=deformdetr", "--editable", ".[test]")
    # Newer than `pyproject.toml`, so that make uses the environment as it is.
    (venv / ".ready").touch()


def _uv(venv: Path, *arguments: str) -> str:
    """Run uv and return its output. Its cache is beside the environment, which links to the cached files."""
    command = [sys.executable, "-m", "uv", "--cache-dir", str(venv.parent / "cache"), *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def _executable(venv: Path) -> Path:
    return venv / "bin" / "python"


def _test(venv: Path, excluded: Sequence[str]) -> list[str]:
    """Run the fast tests in an environment, print their output and return its lines."""
    # Continues after a session with failures.
    command = ["make", "--ignore-errors", "test", f"VENV={venv}"]
    options = [f"--ignore={_OWN_TESTS}", *(f"--deselect={test}" for test in excluded)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": " ".join(options)}
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return lines


if __name__ == "__main__":
    sys.exit(main())
