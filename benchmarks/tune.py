"""Find launch parameters for the GPU at hand, and add them to the library's table.

`python -m benchmarks.tune` tries combinations on an encoder and on a decoder, for both directions and both precisions
of the value. It writes the fastest ones for this GPU's architecture, with their source. It takes minutes.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.cases import Device, OperatorSizes, select
from benchmarks.environment import describe_environment, today
from benchmarks.measure import DeviceClock, WallClock
from benchmarks.operator import draw, timed, track
from benchmarks.providers import OFFSETS, PROVIDERS
from deformdetr.kernels._triton import _launch_table as _launch

TABLE = Path(_launch.__file__).with_name(_launch.TABLE)
CASES: dict[_launch.Size, OperatorSizes] = {
    size: select(["operator"], [name])[0].sizes
    for size, name in (("many", "encoder_800x1333_b2"), ("few", "decoder300_800x1333_b4"))
}
DTYPES: dict[_launch.Precision, torch.dtype] = {"half": torch.bfloat16, "float32": torch.float32}
WARPS, CHUNKS, UNROLLED = (1, 2, 4), (1, 2), (1, 2, 4)

Calls = Mapping[_launch.Direction, Callable[[], object]]
Entry = dict[str, int]


def candidates(size: _launch.Size) -> Iterator[Entry]:
    """Yield all combinations; only queries that are the pixels can be computed in tiles. Rows follow from the warps."""
    for warps, chunks, tiled in itertools.product(WARPS, CHUNKS, (0, 1) if size == "many" else (0,)):
        yield {"warps": warps, "chunks": chunks, "tiled": tiled}


def calls(sizes: OperatorSizes, dtype: torch.dtype, device: Device = "cuda") -> Calls:
    """Return the forward and the backward of the operator, on random inputs like those of a layer in training."""
    tensors, leaves = track(draw(sizes, dtype, device, seed=0), OFFSETS)
    function = partial(PROVIDERS["ours_fused"].load(), tensors, sizes.levels)
    with torch.no_grad():
        grad_output = torch.randn_like(function())
    return {each: timed(function, list(leaves.values()), each, grad_output) for each in ("forward", "backward")}


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call on the GPU, or by the wall clock where there is none."""
    call()
    clock = DeviceClock(call) if torch.cuda.is_available() else WallClock(call, estimate=1e9)
    return median(clock.sample() for _ in range(5))


def tune(
    cases: Mapping[_launch.Size, OperatorSizes] = CASES,
    make_calls: Callable[[OperatorSizes, torch.dtype], Calls] = calls,
    time: Callable[[Callable[[], object]], float] = seconds,
) -> Iterator[_launch.Entries]:
    """Yield the entries so far whenever the fastest of a class is known, and print all times."""
    entries = copy.deepcopy(_launch.read_table()["launches"]["any"])
    for (size, sizes), (precision, dtype) in itertools.product(cases.items(), DTYPES.items()):
        for direction, call in make_calls(sizes, dtype).items():

            def timed_with(
                entry: Entry,
                call: Callable[[], object] = call,
                names: tuple[_launch.Direction, _launch.Precision, _launch.Size] = (direction, precision, size),
            ) -> float:
                table = {"launches": {"any": {names[0]: {names[1]: {names[2]: entry}}}}}
                with mock.patch.object(_launch, "read_table", return_value=table):
                    taken = time(call)
                print(*names, entry, f"{taken * 1e6:.1f} us", flush=True)
                return taken

            best = min(candidates(size), key=timed_with)
            if direction == "backward":
                best = min(({**best, "unrolled": unrolled} for unrolled in UNROLLED), key=timed_with)
            entries[direction][precision][size] = best
            yield entries


def write(path: Path, entries: _launch.Entries, device: Device = "cuda") -> None:
    """Write the library's table with entries for the architecture of this GPU, and their source, added."""
    environment = describe_environment(device)
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "triton"))
    architecture = _launch.architecture_of(torch.device(device)).name
    table: dict[str, Any] = {**_launch.read_table()}
    source = f"Measured on {environment['device_name']} by `python -m benchmarks.tune`, {versions}, {today()}."
    table["sources"] = table["sources"] | {architecture: source}
    table["launches"] = table["launches"] | {architecture: entries}
    path.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TABLE, help="file to write (default: the table of the library)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU, and torch finds none")
    # The stream in which all forwards run, as graphs of their backwards require.
    with torch.cuda.stream(torch.cuda.Stream()):
        for entries in tune():
            write(options.out, entries)
