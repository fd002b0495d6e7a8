"""Results of a run, as they are stored."""

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.cases import Device, Direction, Dtype, Kind
from benchmarks.pages import ROOT

_PACKAGES = ("torch", "numba", "triton", "transformers", "deformdetr")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Spread(_Record):
    """Median, quartiles and minimum over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        # Quantiles need two.
        lower, median, upper = statistics.quantiles([*numbers] * (1 + (len(numbers) == 1)), n=4, method="inclusive")
        return cls(median=median, lower_quartile=lower, upper_quartile=upper, minimum=min(numbers))


class Row(_Record):
    """The result of one provider in one task. Times are in seconds.

    Attributes:
        reason: Why it was not measured.
        error: The largest relative error of its results; see `benchmarks.problems.problem.largest_error`.
        wall_time: Time as the caller sees it, where `time` is the GPU's.
        speedup: Times as fast as the baseline, from the rounds that both took part in.
        flops: Floating-point operations of a call.
        product_flops: Most floating-point operations per second of a large matrix product, in the same rounds.
        run: Index of the run in the file.
    """

    kind: Kind
    case: str
    dtype: Dtype
    direction: Direction
    provider: str
    status: Literal["measured", "unavailable", "disagrees", "failed"]
    reason: str = ""
    note: str = ""
    error: float | None = None
    tolerance: float
    clock: str = ""
    rounds: int = 0
    calls_per_round: int = 0
    time: Spread | None = None
    wall_time: Spread | None = None
    baseline: str
    speedup: Spread | None = None
    peak_bytes: int | None = None
    flops: int | None = None
    product_flops: dict[Dtype, float] = {}
    run: int = 0

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.case, self.dtype, self.direction, self.provider

    @property
    def is_ours(self) -> bool:
        return self.provider.startswith("ours")

    def share_of_products(self, dtype: Dtype) -> float | None:
        """Return the call's floating-point operations per second, divided by those of a large matrix product."""
        if self.time is None or self.flops is None or dtype not in self.product_flops:
            return None
        return self.flops / self.time.median / self.product_flops[dtype]


class Environment(_Record):
    """The machine and the versions of a run; `dirty` says whether files differed from the commit (`None`: no git)."""

    device: Device
    device_name: str
    cores: int
    threads: int
    versions: dict[str, str]
    commit: str
    dirty: bool | None


class Run(_Record):
    """One call of the command; `complete` says whether it ran to its end."""

    environment: Environment
    command: str
    date: str
    seed: int
    cold: bool
    complete: bool


class Results(_Record):
    """Rows of one kind and device, from one or several runs."""

    kind: Kind
    runs: list[Run]
    rows: list[Row]

    @property
    def environment(self) -> Environment:
        """Return the newest run's environment."""
        return self.runs[-1].environment

    @property
    def place(self) -> str:
        """Return the device's name and, on CPUs, the number of threads."""
        environment = self.environment
        threads = f", {environment.threads} thread{'s' if environment.threads > 1 else ''}"
        return environment.device_name + (threads if environment.device == "cpu" else "")

    def followed_by(self, run: Run, rows: Sequence[Row]) -> "Results":
        """Add a run. Its rows replace those of the same tasks, and runs that have no rows left are dropped."""
        measured = {row.key[:3] for row in rows}
        kept = [row for row in self.rows if row.key[:3] not in measured]
        numbers = sorted({row.run for row in kept})
        renumbered = [row.model_copy(update={"run": numbers.index(row.run)}) for row in kept]
        added = [row.model_copy(update={"run": len(numbers)}) for row in rows]
        runs = [*(self.runs[number] for number in numbers), run]
        return Results(kind=self.kind, runs=runs, rows=[*renumbered, *added])

    def row(self, case: str, dtype: str, direction: str, provider: str) -> Row | None:
        """Return a row, if there is one."""
        return next((row for row in self.rows if row.key == (case, dtype, direction, provider)), None)


def save(results: Results, path: Path) -> None:
    """Write results, replacing an existing file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(results.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    partial.replace(path)


def load(path: Path) -> Results:
    """Read results.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} does not hold results of this version: {error}") from error


def load_all(directory: Path, kind: Kind) -> list[Results]:
    """Read the results of one kind on all devices, in the order of their files' names."""
    return [load(path) for path in sorted(directory.glob(f"{kind}_*.json"))]


def file_name(kind: Kind, environment: Environment) -> str:
    """Return the name of the file for a kind and device."""
    slug = re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower()).strip("-")
    return f"{kind}_{'cpu_' if environment.device == 'cpu' else ''}{slug}.json"


def describe_environment(device: Device, commit: str | None) -> Environment:
    """Return the machine's description, and the versions of the packages.

    Args:
        device: Device of the machine to describe.
        commit: Commit of the code, where there is no git to ask.
    """
    found, dirty = _commit()
    return Environment(
        device=device,
        device_name=torch.cuda.get_device_name() if device == "cuda" else _processor(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        commit=commit or found,
        dirty=None if commit else dirty,
    )


def today() -> str:
    """Return the date, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _commit() -> tuple[str, bool | None]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD"), bool(git("status", "--porcelain", "--", "src", "benchmarks"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
