"""What a run found, as it is stored."""

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
    """Numbers of several rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        if len(numbers) == 1:
            lower = median = upper = numbers[0]
        else:
            lower, median, upper = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median=median, lower_quartile=lower, upper_quartile=upper, minimum=min(numbers))


class Row(_Record):
    """What came out for one provider in one task; times are in seconds."""

    kind: Kind
    case: str
    dtype: Dtype
    direction: Direction
    provider: str
    status: Literal["measured", "unavailable", "disagrees", "failed"]
    reason: str = ""
    """Why it was not measured."""
    note: str = ""
    error: float | None = None
    """See `benchmarks.agreement`."""
    tolerance: float
    clock: str = ""
    rounds: int = 0
    calls_per_round: int = 0
    time: Spread | None = None
    wall_time: Spread | None = None
    """As the caller sees it, where `time` is the GPU's."""
    baseline: str
    speedup: Spread | None = None
    """How many times as fast as the baseline, from the rounds that both took part in."""
    peak_bytes: int | None = None
    run: int = 0
    """Which of the file's."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.case, self.dtype, self.direction, self.provider

    @property
    def is_ours(self) -> bool:
        return self.provider.startswith("ours")


class Environment(_Record):
    """Where the numbers come from."""

    device: Device
    device_name: str
    cores: int
    threads: int
    versions: dict[str, str]
    commit: str
    dirty: bool | None
    """Whether files differed from the commit; unknown without git."""


class Run(_Record):
    """One call of the command."""

    environment: Environment
    command: str
    date: str
    seed: int
    cold: bool
    complete: bool
    """Whether it came to its end."""


class Results(_Record):
    """Rows of one kind and device, from one run or several."""

    kind: Kind
    runs: list[Run]
    rows: list[Row]

    @property
    def environment(self) -> Environment:
        """The newest run's."""
        return self.runs[-1].environment

    def followed_by(self, run: Run, rows: Sequence[Row]) -> "Results":
        """Add a run; its rows replace all rows of the same tasks, and runs without rows are dropped."""
        measured = {row.key[:3] for row in rows}
        kept = [row for row in self.rows if row.key[:3] not in measured]
        numbers = sorted({row.run for row in kept})
        renumbered = [row.model_copy(update={"run": numbers.index(row.run)}) for row in kept]
        added = [row.model_copy(update={"run": len(numbers)}) for row in rows]
        return Results(
            kind=self.kind, runs=[*(self.runs[number] for number in numbers), run], rows=[*renumbered, *added]
        )

    def row(self, case: str, dtype: str, direction: str, provider: str) -> Row | None:
        """Find a row, if there is one."""
        key = (case, dtype, direction, provider)
        return next((row for row in self.rows if row.key == key), None)


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
        ValueError: If it holds something else.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} does not hold results of this version: {error}") from error


def load_all(directory: Path, kind: Kind) -> list[Results]:
    """Read the results of one kind, of all devices, in the order of their files' names."""
    return [load(path) for path in sorted(directory.glob(f"{kind}_*.json"))]


def file_name(kind: Kind, environment: Environment) -> str:
    """Name the file of a kind and device."""
    slug = re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower()).strip("-")
    return f"{kind}_{'cpu_' if environment.device == 'cpu' else ''}{slug}.json"


def describe_environment(device: Device, commit: str | None) -> Environment:
    """Say what the numbers are measured on and with.

    Args:
        device: Which of the machine's.
        commit: Of the code, where git does not know it.
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
    """Give the date, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _commit() -> tuple[str, bool | None]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

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
