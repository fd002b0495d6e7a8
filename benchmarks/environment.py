"""Where results come from: the machine, the versions of packages, the commit and the day."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Device

ROOT = Path(__file__).parents[1]
_PACKAGES = ("torch", "numba", "triton", "transformers", "deformops", "deformdetr")


def describe_environment(device: Device = "cpu", commit: str | None = None) -> dict[str, Any]:
    """Return the machine's name, the versions of the packages, and the commit.

    `dirty` says whether files differed from the commit, and is `None` without git, where `commit` has to be given.
    """
    found, dirty = _commit()
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "commit": commit or found,
        "dirty": None if commit else dirty,
    }


def describe_source(*commands: str, packages: Sequence[str] = ("torch",)) -> dict[str, Any]:
    """Return the entries of stored results from which `benchmarks.pages.source` makes a sentence."""
    environment = describe_environment()
    versions = {name: environment["versions"].get(name) or _version(name) for name in packages}
    return {"commands": list(commands), "commit": environment["commit"], "versions": versions}


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
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return found[1] if found else platform.machine()
