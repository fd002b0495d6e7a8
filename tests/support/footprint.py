"""What a process holds and has used, as Linux tells."""

import os
import resource
from pathlib import Path
from statistics import median


def resident_bytes(process: int | str = "self") -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


def open_files(process: int | str = "self") -> int:
    """Return the number of open files of a process."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def cpu_seconds(process: int | str = "self") -> float:
    """Return the time that the threads of a process have run."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quarters(values: list[float]) -> tuple[float, float]:
    """Return the medians of the second and of the last quarter: before the second, caches fill."""
    length = len(values) // 4
    return median(values[length : 2 * length]), median(values[-length:])
